"""`MoETrainer` as people write it: a script without a main guard, a notebook, two processes."""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moe_megatron.model.moe_model import MoEModel
from moe_megatron.testing.distributed import NO_LAUNCHER, RankEnd, RankError, start_ranks
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

PREPARE = """
import json, sys
from pathlib import Path
import torch
from moe_megatron import MoEModel, MoETrainer

TOKENIZER, CORPUS = sys.argv[1], Path(sys.argv[2])
TEXTS = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()]
ANSWERS = {}

# Megatron pads the vocabulary to a multiple of 128, and the padding takes part in its softmax.
def model(**options):
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_experts=4, num_layers=2, num_attention_heads=4)
    return MoEModel(**{**shape, "expert_hidden_size": 32, "vocab_size": 384, **options})

def trainer(name, **options):
    return MoETrainer(model(), tokenizer=TOKENIZER, run_dir=f"runs/{name}", **options)
"""

# No guard, no functions: how a first script looks.
SCRIPT = (
    PREPARE
    + """
import datasets

import logging, shutil
from moe_megatron import compare
from moe_megatron.analytics.routers import RouterHooks

few = dict(max_steps=2, batch_size=4, sequence_length=32)
Path("corpus.txt").write_text("\\n".join(TEXTS))
rows = {"body": TEXTS}
kinds = {
    "list": (TEXTS, {}),
    "txt": ("corpus.txt", {}),
    "jsonl": (CORPUS, {}),
    "dataset": (datasets.Dataset.from_dict(rows), {"text_key": "body"}),
    "streamed": (datasets.Dataset.from_dict(rows).to_iterable_dataset(), {"text_key": "body"}),
}
for name, (data, options) in kinds.items():
    result = trainer(name).train(data, **few, **options)
    ANSWERS[name] = {"steps": result.steps, "tokens": result.tokens, "losses": result.losses}
heavy = {"wandb.sdk", "transformers", "torch._dynamo", "torch._inductor.codecache"}
ANSWERS["heavy"] = sorted(heavy & sys.modules.keys())

one = trainer("twice")
try:
    one.visualize_routing()
except Exception as error:
    ANSWERS["too early"] = [type(error).__name__, str(error)]
long = dict(batch_size=4, sequence_length=32, learning_rate=5e-3, max_steps=10)
first = one.train(TEXTS, **long)
before = [w.clone() for w in one.model.parameters()]
second = one.train(TEXTS, TEXTS[:40], **long)
ANSWERS["twice"] = {
    "losses": [first.losses, second.losses],
    "history": one.history.losses,
    "folders": [str(first.run_dir), str(second.run_dir)],
    "validation": second.validation_loss,
    "evaluated": one.evaluate(TEXTS[:40], sequence_length=32).loss,
    "report": str(one.visualize_routing("routing.html")),
    "routing": [second.routing.steps, second.routing.tokens],
    "routers": [second.routing.routers, RouterHooks(one.model).digests()],
    "interrupted": second.interrupted,
    "checkpoint": second.checkpoint,
}
one.save_model("saved")
loaded, trained = MoEModel.from_pretrained("saved"), one.model.state_dict()
ANSWERS["saved"] = {
    "equal": all(torch.equal(v, trained[k]) for k, v in loaded.state_dict().items()),
    "differs from before": any(
        not torch.equal(a, b) for a, b in zip(before, loaded.parameters(), strict=True)
    ),
}
Path("corpus.txt").write_text("\\n".join(TEXTS[:30]))
ANSWERS["changed file"] = trainer("changed").train(
    "corpus.txt", batch_size=4, sequence_length=32
).steps
saving = {"checkpoint.save_interval": 2}
kept = trainer("kept", overrides=saving)
asked = dict(
    train_dataset=TEXTS,
    eval_dataset=TEXTS[:40],
    eval_interval=2,
    batch_size=2,
    gradient_accumulation_steps=2,
    sequence_length=32,
    max_steps=4,
    warmup_steps=1,
    weight_decay=0.2,
    expert_dropout=0.25,
    load_balancing_loss_coef=0.03,
    router_z_loss_coef=0.002,
)
whole = kept.train(**asked)
ANSWERS["kept"] = str(whole.checkpoint)
ANSWERS["config"] = Path(whole.run_dir, "config.yaml").read_text()
ANSWERS["root logger"] = [len(logging.getLogger().handlers), logging.getLogger().level]

# The run as it was after two steps, continued by another trainer.
for name in ("metrics.jsonl", "routing.jsonl"):
    ANSWERS[name] = Path("runs/kept", name).read_text()
shutil.rmtree("runs/kept/checkpoints/iter_0000004")
Path("runs/kept/checkpoints/latest_checkpointed_iteration.txt").write_text("2")
other = trainer("kept", overrides=saving)
rest = other.train(**asked, resume=True)
ANSWERS["resumed"] = {
    "losses": [whole.losses, rest.losses],
    "folders": [str(whole.run_dir), str(rest.run_dir)],
    "tokens": [whole.tokens, rest.tokens],
    "validation": [whole.validation_loss, rest.validation_loss],
    "equal": all(
        torch.equal(a, b)
        for a, b in zip(kept.model.parameters(), other.model.parameters(), strict=True)
    ),
    "frame": other.history.to_pandas().reset_index().to_dict("list"),
    "columns": other.history.columns(),
    "shown": repr(rest),
}
rest.plot("kept.png")
compare([whole, "runs/twice", rest]).plot("runs.svg")
ANSWERS["compared"] = str(compare({"whole": whole, "again": "runs/kept"}))
for name, options in {"nothing to resume": {"resume": True}, "no run": {"resume": True}}.items():
    try:
        (other if name == "nothing to resume" else trainer("unknown")).train(**asked, **options)
    except Exception as error:
        ANSWERS[name] = [type(error).__name__, str(error)]
try:
    one.train(TEXTS, **long, resume=True)
except Exception as error:
    ANSWERS["no checkpoint"] = [type(error).__name__, str(error)]
one_sided, told = model(add_bias=True), []
for layer in one_sided.layers:
    layer.moe.router.bias.data[0] = 100.0
collects = logging.Handler()
collects.emit = lambda record: told.append(record.getMessage())
logging.getLogger("moe_megatron").addHandler(collects)
collapsed = MoETrainer(one_sided, tokenizer=TOKENIZER, run_dir="runs/collapsed")
collapsed.train(TEXTS, **few)
ANSWERS["collapsed"] = [line for line in told if "collapsed" in line]
broken = trainer("broken")
broken.model.embed_tokens.weight.data[:] = float("nan")
try:
    broken.train(TEXTS, **few)
except Exception as error:
    ANSWERS["broken"] = [type(error).__name__, str(error)]
dense = MoETrainer(model(num_experts=None), tokenizer=TOKENIZER, run_dir="runs/dense")
result = dense.train(TEXTS, **few)
ANSWERS["dense"] = [result.steps, result.routing, str(dense.visualize_routing("dense.html"))]
Path("answers.json").write_text(json.dumps(ANSWERS))
"""
)

# Cells as a notebook front end runs them: from a thread, each compiled on its own.
NOTEBOOK = (
    PREPARE
    + """
import code, threading

CELLS = [
    "trainer_ = trainer('notebook')",
    "result = trainer_.train(TEXTS, max_steps=2, batch_size=4, sequence_length=32)",
    "result = trainer_.train(TEXTS, max_steps=2, batch_size=4, sequence_length=32)",
    "page = trainer_.visualize_routing('notebook.html')",
]
shell = code.InteractiveInterpreter(globals())

def run_cells():
    for cell in CELLS:
        shell.runsource(cell, symbol="exec")

where, thread = sys.argv[3], threading.Thread(target=run_cells)
run_cells() if where == "main" else (thread.start(), thread.join())
print(f"\\nDONE {result.steps} {result.losses[-1]:.3f} {page}")
"""
)

PARALLEL = (
    PREPARE
    + """
import os

rank = int(os.environ.get("RANK", "0"))
expert_parallel = int(sys.argv[3])
one = trainer(
    f"ep{expert_parallel}",
    load_balancing="none",
    overrides={
        "parallel.expert_parallel_size": expert_parallel,
        "training.precision": "fp32",  # in bf16 sums depend on their order
    },
)
if rank:  # every rank must start from the weights of rank 0
    for weight in one.model.parameters():
        weight.data.zero_()
start = {k: v.clone() for k, v in model().state_dict().items()}
result = one.train(TEXTS, max_steps=4, batch_size=4, sequence_length=32, learning_rate=1e-3)
torch.save((start, one.model.state_dict()), f"ep{expert_parallel}-rank{rank}.pt")
if rank == 0:
    Path(f"ep{expert_parallel}.json").write_text(json.dumps(result.losses))
one.save_model(f"ep{expert_parallel}")
"""
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def run_script(
    place: Path, tokenizer: Path, corpus: Path, cache: Path
) -> Callable[..., list[RankEnd]]:
    """Writes a script, runs it to its end, and returns what it printed on every rank."""

    def run(name: str, text: str, *words: object, **surroundings: Any) -> list[RankEnd]:
        script = place / f"{name}.py"
        script.write_text(text)
        environment = {"MOE_MEGATRON_CACHE": str(cache), **surroundings.pop("environment", {})}
        given = {"directory": place, "environment": environment, **surroundings}
        with start_ranks(run_as_main, script, (tokenizer, corpus, *words), **given) as ranks:
            ends = ranks.wait()
        if any(end.exit_code for end in ends):
            raise RankError(ends)
        return ends

    return run


# --- a script ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(
    place: Path, tokenizer: Path, corpus: Path, start: Callable[..., Any]
) -> dict[str, Any]:
    """What the script found, in an interpreter that nothing but `python` started."""
    script = place / "script.py"
    script.write_text(SCRIPT)
    program = start([sys.executable, script, tokenizer, corpus], place)
    assert program.end() == 0, program.output
    return dict(json.loads((place / "answers.json").read_text()))


def test_training_imports_nothing_heavy_that_it_does_not_use(answers: dict[str, Any]) -> None:
    """W&B, transformers and torch's compiler: together they made a rank start half as fast."""
    assert answers["heavy"] == []


@pytest.mark.parametrize("kind", ["list", "txt", "jsonl", "dataset", "streamed"])
def test_train_reads_every_kind_of_text(kind: str, answers: dict[str, Any]) -> None:
    answer = answers[kind]
    assert (answer["steps"], answer["tokens"]) == (2, 2 * 4 * 32)


def test_train_on_equal_texts_gives_equal_losses(answers: dict[str, Any]) -> None:
    losses = answers["list"]["losses"]
    for kind in ("jsonl", "dataset", "streamed"):  # a .txt file is one document
        assert answers[kind]["losses"] == losses, kind


def test_second_training_goes_on_from_the_weights_of_the_first(answers: dict[str, Any]) -> None:
    first, second = answers["twice"]["losses"]
    assert len(first) == len(second) == 10
    assert first[-1] < first[0]
    assert second[0] < first[5]
    assert second[-1] < first[-1]
    assert answers["twice"]["history"] == second


def test_each_training_gets_a_folder(answers: dict[str, Any], place: Path) -> None:
    assert answers["twice"]["folders"] == ["runs/twice", "runs/twice-2"]
    for folder in answers["twice"]["folders"]:
        assert (place / folder / "metrics.jsonl").exists()
        assert (place / folder / "config.yaml").exists()


def test_evaluate_agrees_with_megatrons_validation_loss(answers: dict[str, Any]) -> None:
    # Not the same rows: Megatron cuts 32 tokens and their successors, shuffled, to whole batches.
    answer = answers["twice"]
    assert answer["evaluated"] == pytest.approx(answer["validation"], rel=0.01)


def test_result_holds_the_routing_of_the_run(answers: dict[str, Any]) -> None:
    assert answers["twice"]["routing"] == [10, 10 * 4 * 32]
    counted, of_model = answers["twice"]["routers"]
    assert counted == of_model != {}
    assert answers["twice"]["interrupted"] is False
    assert answers["twice"]["checkpoint"] is None


def test_visualize_before_training_says_what_to_do(answers: dict[str, Any]) -> None:
    assert answers["too early"] == [
        "ConfigError",
        "there is no routing to show yet; call train(...) first.",
    ]


def test_report_needs_nothing_but_itself(answers: dict[str, Any], place: Path) -> None:
    page = (place / answers["twice"]["report"]).read_text()
    assert "Router entropy" in page
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'\b(?:src|href)="(?!data:)', outside) == []


def test_saved_model_is_the_trained_one(answers: dict[str, Any], place: Path) -> None:
    assert answers["saved"] == {"equal": True, "differs from before": True}
    model = MoEModel.from_pretrained(place / "saved")
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_changed_file_is_read_again(answers: dict[str, Any]) -> None:
    assert answers["changed file"] < 120 * 12 / (4 * 32)


def test_checkpoint_asked_for_is_kept(answers: dict[str, Any], place: Path) -> None:
    assert answers["kept"] == "runs/kept/checkpoints/iter_0000004"
    assert (place / answers["kept"] / "routing_profile.json").exists()


def test_arguments_reach_the_configuration(answers: dict[str, Any]) -> None:
    config = yaml.safe_load(answers["config"])
    training, moe = config["training"], config["moe"]
    assert (training["global_batch_size"], training["micro_batch_size"]) == (4, 2)
    assert (training["warmup_steps"], training["weight_decay"]) == (1, 0.2)
    assert training["eval_interval"] == 2
    assert moe["expert_dropout"] == 0.25
    assert (moe["aux_loss_coef"], moe["z_loss_coef"]) == (0.03, 0.002)


def test_training_leaves_the_root_logger_alone(answers: dict[str, Any]) -> None:
    assert answers["root logger"] == [0, logging.WARNING]


def test_resumed_run_ends_as_if_it_had_not_been_interrupted(answers: dict[str, Any]) -> None:
    resumed = answers["resumed"]
    assert resumed["equal"] is True
    for what in ("losses", "folders", "tokens", "validation"):
        before, after = resumed[what]
        assert before == after, what


def test_history_is_a_frame_of_all_steps(answers: dict[str, Any]) -> None:
    frame, columns = answers["resumed"]["frame"], answers["resumed"]["columns"]
    assert frame["step"] == [1, 2, 3, 4]
    assert frame["loss"] == columns["loss"] == answers["resumed"]["losses"][0]
    assert [it is not None and it == it for it in frame["validation_loss"]] == [False, True] * 2
    assert min(frame["imbalance"]) >= 1
    assert answers["resumed"]["shown"].startswith("TrainingResult(steps=4, final_loss=")


def test_runs_are_drawn_and_compared(answers: dict[str, Any], place: Path) -> None:
    assert (place / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (place / "runs.svg").read_text()
    header, whole, again = answers["compared"].splitlines()
    assert header.split() == [
        "run",
        *"steps tokens loss validation loss imbalance".split(),
        *"tokens per second".split(),
    ]
    assert whole.split()[0:3] == ["whole", "4", "512"]
    assert whole.split()[3:6] == again.split()[3:6]


def test_resume_without_something_to_resume_is_explained(answers: dict[str, Any]) -> None:
    messages = {
        "nothing to resume": "runs/kept has made all its 4 steps, so there is nothing to resume",
        "no run": "the last run of runs/unknown, but there is none yet; leave resume out",
        "no checkpoint": "runs/twice-2 holds no checkpoint to resume from: MoETrainer saves none",
    }
    for name, message in messages.items():
        kind, text = answers[name]
        assert kind == "CheckpointError"
        assert message in text


def test_training_whose_routers_collapse_says_so(answers: dict[str, Any]) -> None:
    (line,) = answers["collapsed"]
    assert line.startswith("the routers of layers 1, 2 have collapsed onto few experts: in steps 1")
    assert "Raise moe.aux_loss_coef from 0.02 to 0.04" in line


def test_loss_that_is_not_finite_is_named(answers: dict[str, Any]) -> None:
    kind, message = answers["broken"]
    assert kind == "FaultError"
    assert message.startswith(
        "the loss stopped being finite at step 1, which cannot be mended (loss"
    )
    assert message.endswith("Lower training.learning_rate, or start from weights that are finite.")


def test_dense_model_trains_and_reports_without_routing(
    answers: dict[str, Any], place: Path
) -> None:
    steps, routing, page = answers["dense"]
    assert (steps, routing) == (2, None)
    assert (place / page).exists()


# --- a notebook ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["main", "thread"])
def test_notebook_cells_train_again_and_again(where: str, run_script: Callable[..., Any]) -> None:
    name = f"notebook_{where}"
    (end,) = run_script(name, NOTEBOOK, where, world_size=1, environment=NO_LAUNCHER)
    assert "DONE 2 " in end.output
    assert "Traceback" not in end.output


# --- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(place: Path, run_script: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Weights before and after a training: of one process, and of each of two."""
    for world_size in (1, 2):
        run_script("parallel", PARALLEL, world_size, world_size=world_size)
    names = ("ep1-rank0", "ep2-rank0", "ep2-rank1")
    return {name: torch.load(place / f"{name}.pt") for name in names}


def test_every_rank_ends_with_the_same_weights(weights: dict[str, tuple[Any, Any]]) -> None:
    for name, value in weights["ep2-rank0"][1].items():
        assert torch.equal(value, weights["ep2-rank1"][1][name]), name


def test_two_processes_train_the_weights_that_one_does(
    weights: dict[str, tuple[Any, Any]], place: Path
) -> None:
    before, alone = weights["ep1-rank0"]
    for name, value in weights["ep2-rank0"][1].items():
        assert torch.allclose(value, alone[name], rtol=0, atol=1e-4), name
        assert (alone[name] - before[name]).abs().max() > 1e-3, name
    one, two = (json.loads((place / f"ep{size}.json").read_text()) for size in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


def test_model_saved_by_two_processes_is_whole(
    weights: dict[str, tuple[Any, Any]], place: Path
) -> None:
    loaded = MoEModel.from_pretrained(place / "ep2").state_dict()
    for name, value in weights["ep2-rank0"][1].items():
        assert torch.equal(loaded[name], value), name

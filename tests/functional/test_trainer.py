"""`MoETrainer` as people write it: a script without a main guard, a notebook, two processes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
kept = trainer("kept", overrides={"checkpoint.save_interval": 1})
ANSWERS["kept"] = str(kept.train(TEXTS, **few).checkpoint)
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
    assert answers["twice"]["interrupted"] is False
    assert answers["twice"]["checkpoint"] is None


def test_visualize_before_training_says_what_to_do(answers: dict[str, Any]) -> None:
    assert answers["too early"] == [
        "ConfigError",
        "there is no routing to show yet; call train(...) first.",
    ]


def test_report_needs_nothing_but_itself(answers: dict[str, Any], place: Path) -> None:
    page = (place / answers["twice"]["report"]).read_text()
    assert "<svg" in page
    assert 'src="http' not in page
    assert "<link" not in page


def test_saved_model_is_the_trained_one(answers: dict[str, Any], place: Path) -> None:
    assert answers["saved"] == {"equal": True, "differs from before": True}
    model = MoEModel.from_pretrained(place / "saved")
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_changed_file_is_read_again(answers: dict[str, Any]) -> None:
    assert answers["changed file"] < 120 * 12 / (4 * 32)


def test_checkpoint_asked_for_is_kept(answers: dict[str, Any], place: Path) -> None:
    assert answers["kept"] == "runs/kept/checkpoints/iter_0000002"
    assert (place / answers["kept"] / "routing_profile.json").exists()


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

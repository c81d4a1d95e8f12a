"""Preferences in Megatron's loop: the same under every layout, and a reference that is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.references import reference_file
from moe_megatron.data.instructions.stored import StoredPairs
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import expand_sources
from moe_megatron.run.prepared_data import open_instruction_writer
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.testing.distributed import RankError
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(900)]

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
LENGTH, STEPS = 96, 3
SHAPE: dict[str, Any] = {
    **few_steps(STEPS),
    "model.num_layers": 4,
    "data.sequence_length": LENGTH,
    "data.split": "75,25,0",
    "training.eval_interval": STEPS,
    "training.eval_steps": 2,
    "training.learning_rate": 3e-3,
    "training.precision": "fp32",
    "moe.aux_loss_coef": 0.05,
    "moe.z_loss_coef": 0.01,
    "preferences.beta": 0.5,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"parallel.expert_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "tp2": {"parallel.tensor_parallel_size": 2},
    "vpp2": {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2},
    "tp2_pp2": {"parallel.tensor_parallel_size": 2, "parallel.pipeline_parallel_size": 2},
    "recompute_ep2": {"parallel.expert_parallel_size": 2, "training.recompute": "full"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@pytest.fixture(scope="module")
def prepare(root: Path) -> Callable[[str], Path]:
    """Pairs under a name: each name has its own copy, and so its own reference."""
    demo_tokenizer(vocab_size=512).save(root / "tok")
    (root / "tok" / "chat_template.jinja").write_text(TEMPLATE)
    words = "it is so and then more of this than that".split()
    rows = [
        {
            "prompt": f"{it}?",
            "chosen": " ".join(words[(it + k) % 10] for k in range(it % 6 + 5)),
            "rejected": " ".join(words[(it * 3 + k) % 10] for k in range(it % 4 + 1)),
        }
        for it in range(40)
    ]
    source = root / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = chat_encoder("preferences", load_tokenizer(root / "tok"), expand_sources([source]))

    def make(name: str) -> Path:
        (root / name).mkdir(exist_ok=True)
        prefix = root / name / "pairs"
        prepare_dataset([source], encoder, prefix, open_instruction_writer, progress=False)
        assert len(packed_rows(StoredPairs(prefix), LENGTH).rows) >= 8
        return prefix

    return make


def references(prefix: Path) -> list[str]:
    return sorted(path.name for path in prefix.parent.glob("*.safetensors"))


def evaluations(run: Path) -> list[EvalRecord]:
    return [it for it in read_metrics(run / METRICS_FILE) if isinstance(it, EvalRecord)]


def same_steps(ours: list[StepRecord], theirs: list[StepRecord]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.loss == pytest.approx(their.loss, rel=1e-5, abs=1e-5)
        assert our.grad_norm == pytest.approx(their.grad_norm, rel=1e-4)
        assert our.measures.keys() == {"reward_margin", "reward_accuracy"}
        margin, expected = our.measures["reward_margin"], their.measures["reward_margin"]
        assert margin == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def single(root: Path, prepare: Callable[[str], Path]) -> list[StepRecord]:
    job = Job(run_dir=root / "single_run", overrides=SHAPE, data=prepare("single"))
    run_jobs([job], world_size=1)
    return step_records(root / "single_run")


def test_one_process_learns_what_is_preferred(single, prepare):
    first, last = single[0], single[-1]
    assert first.loss == pytest.approx(0.6931472, abs=1e-6)  # log 2: it is its own reference
    assert first.measures["reward_margin"] == pytest.approx(0.0, abs=1e-6)
    assert last.loss < first.loss
    assert last.measures["reward_margin"] > 0
    assert last.measures["reward_accuracy"] > 0.5
    assert len(references(prepare("single"))) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_train_alike_and_know_the_reference_by_one_name(name, root, prepare, single):
    world_size = 4 if name == "tp2_pp2" else 2
    prefix = prepare(name)
    job = Job(run_dir=root / f"{name}_run", overrides={**SHAPE, **LAYOUTS[name]}, data=prefix)
    run_jobs([job], world_size=world_size)
    same_steps(step_records(job.run_dir), single)
    (ours,), (theirs,) = evaluations(job.run_dir), evaluations(root / "single_run")
    assert ours.measures.keys() == {"reward_margin", "reward_accuracy"}
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.measures == pytest.approx(theirs.measures, rel=1e-4, abs=1e-5)
    assert references(prefix) == references(prepare("single"))


def test_adapters_learn_preferences_beside_frozen_weights(root, prepare):
    shape = {**SHAPE, "adapter.rank": 4}
    runs = []
    for name, world_size in (("adapters", 1), ("adapters_ep2", 2)):
        layout = LAYOUTS["ep2"] if world_size == 2 else {}
        job = Job(run_dir=root / f"{name}_run", overrides={**shape, **layout}, data=prepare(name))
        run_jobs([job], world_size=world_size)
        runs.append(step_records(job.run_dir))
    same_steps(runs[1], runs[0])
    assert references(prepare("adapters")) == references(prepare("adapters_ep2"))
    assert runs[0][0].loss == pytest.approx(0.6931472, abs=1e-6)
    assert runs[0][-1].loss < runs[0][0].loss


def test_a_training_that_goes_on_has_the_reference_it_began_with(root, prepare):
    prefix = prepare("resumed")
    shape = {**SHAPE, "checkpoint.save_interval": 2, **few_steps(4)}
    whole = Job(run_dir=root / "whole_run", overrides=shape, data=prefix)
    half = {**shape, "megatron.exit-interval": 2, "parallel.expert_parallel_size": 2}
    first = Job(run_dir=root / "half_run", overrides=half, data=prefix)
    run_jobs([whole], world_size=1)
    kept = references(prefix)
    run_jobs([first], world_size=2)
    rest = {**shape, "checkpoint.load": str(first.run_dir / "checkpoints")}
    again = Job(run_dir=root / "rest_run", overrides=rest, data=prefix)
    run_jobs([again], world_size=1)
    same_steps(step_records(again.run_dir), step_records(whole.run_dir)[2:])
    assert references(prefix) == kept

    # Of another model nothing is taken, and of this one nothing else.
    (file,) = prefix.parent.glob("*.safetensors")
    weights = file.name.split("-")[-2]
    file.rename(reference_file(prefix, "0" * 16, LENGTH // 2))
    with pytest.raises(RankError, match=r"what its reference\s+thinks of the data is not there"):
        run_jobs([again], world_size=1)
    reference_file(prefix, "0" * 16, LENGTH // 2).rename(file)
    other = Job(
        run_dir=root / "new_run",
        overrides={**rest, "megatron.finetune": True, "megatron.exit-interval": 1},
        data=prefix,
    )
    run_jobs([other], world_size=1)
    (record,) = step_records(other.run_dir)
    assert record.loss == pytest.approx(0.6931472, abs=1e-6)
    assert len(references(prefix)) == 2
    assert weights in references(prefix)[0] + references(prefix)[1]

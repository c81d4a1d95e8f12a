"""Converted checkpoints under Megatron's own loader: any layout, training on, and the way back.

Each layout also saves what it loaded, after a step whose learning rate is too small to change it.

This file is also the program of each rank.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TP2 = {"parallel.tensor_parallel_size": 2}
PP2 = {"parallel.pipeline_parallel_size": 2}
EP2 = {"parallel.expert_parallel_size": 2}
FIRST_TWO = {"megatron.decoder-first-pipeline-num-layers": 2}
# Latent attention, groups of experts and dense first layers in an uneven pipeline; half rotated
# heads and shared experts; norms over all heads; single biases, a choice of experts of its own and
# multipliers; words that no number of ranks divides.
LAYOUTS: dict[str, tuple[int, dict[str, int], list[str]]] = {
    "tp2": (2, TP2, ["deepseek_v3", "mixtral", "olmoe", "phimoe"]),
    "ep2": (2, EP2, ["deepseek_v3", "glm4_moe"]),
    "pp2": (2, {**PP2, **FIRST_TWO}, ["deepseek_v3", "mixtral-tied", "granitemoe"]),
    "tp2_ep2": (4, {**TP2, **EP2}, ["deepseek_v3"]),
}
CASES = [f"{layout}-{name}" for layout, (_, _, names) in LAYOUTS.items() for name in names]
TOKENS = (2, 16)
STEPS = 3


# --- the program of a rank -----------------------------------------------------------------------


def _program(place: Path, world_size: int) -> None:
    from moe_megatron.mcore import engine

    answers = {}
    for layout, (needed, _, names) in LAYOUTS.items():
        for name in names if needed == world_size else ():
            answers[f"{layout}-{name}"] = _compare(place, name, layout)
    if world_size == 2:
        answers["training"] = _train(place, "mixtral")
    if engine.rank() == 0:
        (place / f"world{world_size}.json").write_text(json.dumps(answers))
    engine.shut_down()


def _compare(place: Path, name: str, layout: str) -> float:
    """Load a converted checkpoint and save it; say how far logits are from transformers'."""
    import torch
    from parallel_logits import parallel_logits  # beside this program

    from moe_megatron.mcore.callbacks import Callback

    expected = torch.load(place / f"{name}.pt", weights_only=True)
    answer: list[float] = []

    class Compare(Callback):
        def on_train_start(self, model: list[Any], start_step: int) -> None:
            with torch.no_grad():
                logits = parallel_logits(model[0], expected["tokens"])
            if logits is not None:
                wanted = expected["logits"]
                answer.append(float((logits[..., : wanted.shape[-1]] - wanted).abs().max()))
            answers: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(answers, answer)
            answer[:] = [max(number for other in answers for number in other)]

    _, sizes, _ = LAYOUTS[layout]
    unchanged = {
        "training.train_steps": 1,
        "training.learning_rate": 1e-30,
        "training.min_learning_rate": 0.0,
        "checkpoint.save_interval": 1,
    }
    if name in ("deepseek_v3", "glm4_moe"):
        unchanged["moe.expert_bias_update_rate"] = 1e-30
    _run(place / layout, place / name, {**sizes, **unchanged}, callbacks=(Compare(),))
    return answer[0]


def _train(place: Path, name: str) -> list[float]:
    """Train on from a converted checkpoint; the loss of each step."""
    from moe_megatron.mcore import engine
    from moe_megatron.telemetry.jsonl import METRICS_FILE, MetricsLog, read_metrics
    from moe_megatron.telemetry.records import StepRecord
    from moe_megatron.telemetry.sink import SinkSet

    sinks = SinkSet([MetricsLog()]) if engine.rank() == 0 else None
    steps = {"training.train_steps": STEPS, "training.learning_rate": 5e-3}
    run_dir = _run(place / "training", place / name, {**EP2, **steps}, sinks=sinks)
    if sinks is None:
        return []
    sinks.close()
    records = read_metrics(run_dir / METRICS_FILE)
    return [r.loss for r in records if isinstance(r, StepRecord) and r.loss is not None]


def _run(runs: Path, example: Path, overrides: dict[str, Any], **more: Any) -> Path:
    """Run the engine from a converted checkpoint, on Megatron's mock data; the run's folder."""
    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.mcore import engine

    folder = example / "megatron"
    config = apply_overrides(
        load_config(folder / "release" / "config.yaml"),
        {
            "checkpoint.load": str(folder),
            "checkpoint.save_interval": None,
            "data.sequence_length": TOKENS[1],
            "training.micro_batch_size": 1,
            "training.global_batch_size": 4,
            "training.precision": "fp32",
            "training.warmup_steps": 0,
            "training.eval_interval": None,
            **overrides,
        },
    )
    run_dir = runs / example.name
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=run_dir / "cache",
        vocab_size=config.data.vocab_size,
        end_of_document=0,
        run_dir=run_dir,
        megatron_log=run_dir / f"rank{engine.rank()}.log",
        **more,
    )
    engine.run(job, engine.choose_machine(config))
    return run_dir


# --- layouts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted examples, and what transformers computes with them."""
    import torch

    from moe_megatron.checkpoint.convert import Execution, import_checkpoint
    from moe_megatron.testing import tiny_models

    folder = tmp_path_factory.mktemp("converted")
    for name in sorted({name for _, _, names in LAYOUTS.values() for name in names}):
        model = tiny_models.save(name, folder / name / "hf", fused=False)
        execution = Execution(progress=False)
        import_checkpoint(folder / name / "hf", folder / name / "megatron", execution=execution)
        tokens = torch.randint(0, model.config.vocab_size, TOKENS)
        with torch.no_grad():
            logits = model(tokens).logits
        torch.save({"tokens": tokens, "logits": logits}, folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def answers(place: Path, torchrun: Callable[..., Any]) -> dict[str, Any]:
    """Largest difference of logits, by layout and example; and losses, under "training"."""
    found: dict[str, Any] = {}
    for world_size in sorted({needed for needed, _, _ in LAYOUTS.values()}):
        program = torchrun(place, world_size, __file__, place)
        assert program.end() == 0, program.output
        found |= json.loads((place / f"world{world_size}.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_layout_computes_what_transformers_computes(
    case: str, answers: dict[str, Any]
) -> None:
    assert answers[case] < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_what_any_layout_saves_returns_bit_by_bit(
    case: str, place: Path, answers: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint

    layout, _, name = case.partition("-")
    export_checkpoint(
        place / layout / name / "checkpoints",
        tmp_path / "back",
        execution=Execution(progress=False),
    )
    before, after = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        for folder in (place / name / "hf", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert [k for k, v in before.items() if not v.equal(after[k])] == []


def test_loss_of_a_plain_model_falls(answers: dict[str, Any]) -> None:
    losses = answers["training"]
    assert len(losses) == STEPS
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.1


# --- training on ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Path,
    corpus: Path,
    torchrun: Callable[..., Any],
) -> Path:
    """Folder of a model with dense layers and 384 words, which trained 3 steps and, resumed, 1."""
    from moe_megatron.checkpoint.convert import Execution, import_checkpoint
    from moe_megatron.testing import tiny_models

    folder = tmp_path_factory.mktemp("trained")
    family, sizes = tiny_models.EXAMPLES["glm4_moe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.EXAMPLES, "trained", (family, {**sizes, "vocab_size": 384}))
        tiny_models.save("trained", folder / "hf", fused=False)
    import_checkpoint(folder / "hf", folder / "megatron", execution=Execution(progress=False))
    fields = {
        "data.paths": [str(corpus)],
        "data.tokenizer": str(tokenizer),
        "data.sequence_length": 32,
        "data.split": "100,0,0",
        "training.micro_batch_size": 4,
        "training.global_batch_size": 8,
        "training.learning_rate": 5e-3,
        "training.warmup_steps": 0,
        "training.eval_interval": None,
        "checkpoint.save_interval": STEPS,
        **EP2,
    }
    words = [word for k, v in fields.items() for word in ("--set", f"{k}={json.dumps(v)}")]
    shared = [ROOT / "pretrain_moe.py", "--run-dir", "run", *words]
    config = folder / "megatron" / "release" / "config.yaml"
    first = torchrun(
        folder,
        2,
        *shared,
        *("--config", config, "--load", "megatron"),
        *("--set", f"training.train_steps={STEPS}"),
    )
    assert first.end() == 0, first.output
    resumed = torchrun(
        folder,
        2,
        *shared,
        *("--config", "run/checkpoints/iter_0000003/config.yaml", "--load", "run/checkpoints"),
        *("--set", f"training.train_steps={STEPS + 1}"),
    )
    assert resumed.end() == 0, resumed.output
    return folder


def test_loss_falls_from_that_of_the_model_and_training_resumes(trained: Path) -> None:
    from moe_megatron.telemetry.jsonl import METRICS_FILE, read_metrics
    from moe_megatron.telemetry.records import StepRecord

    records = read_metrics(trained / "run" / METRICS_FILE)
    losses = {r.step: r.loss for r in records if isinstance(r, StepRecord)}
    assert sorted(losses) == [1, 2, 3, 4]
    assert losses[1] > losses[2] > losses[3] > losses[4]


def test_the_trained_model_returns_to_transformers(trained: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint
    from moe_megatron.checkpoint.verify import Options, verify

    back = trained / "back"
    export_checkpoint(trained / "run" / "checkpoints", back, execution=Execution(progress=False))
    before = AutoModelForCausalLM.from_pretrained(trained / "hf")
    after = AutoModelForCausalLM.from_pretrained(back)
    assert type(after) is type(before)
    assert after.config.vocab_size == 384
    moved = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert moved == set(before.state_dict())  # the correction biases of the choice too
    assert verify(trained / "run" / "checkpoints", back, Options(progress=False)).passed


if __name__ == "__main__":
    _program(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]))

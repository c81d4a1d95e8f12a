"""Converted examples under Megatron's own loader, in every parallel layout.

Each layout compares logits, and saves what it loaded after a step whose learning rate is too small
to change it. The tests run some of the cases, `tools/verification_cards.py` all of them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records

TP2 = {"parallel.tensor_parallel_size": 2}
PP2 = {"parallel.pipeline_parallel_size": 2, "megatron.decoder-first-pipeline-num-layers": 2}
EP2 = {"parallel.expert_parallel_size": 2}
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "tp2": (2, TP2),
    "ep2": (2, EP2),
    "pp2": (2, PP2),
    "tp2_ep2": (4, {**TP2, **EP2}),
}
"""Processes and sizes. The pipeline is uneven: no example has four layers."""
TRAINING = "training"
"""A case besides the layouts: three steps of an example with its experts on two processes."""
TOKENS = (2, 16)
STEPS = 3

Case = tuple[str, str]
"""A layout, or `TRAINING`, and an example of `testing.tiny_models`."""


def world_size(case: Case) -> int:
    """Processes of a case."""
    return 2 if case[0] == TRAINING else LAYOUTS[case[0]][0]


def measure(place: Path, cases: Iterable[Case]) -> dict[Case, Any]:
    """Run cases, those of a number of processes together.

    Args:
        place: Folder that `prepare` was given.
        cases: Of examples that are prepared.

    Returns:
        The largest difference of logits, or the losses, by case.
    """
    chosen, found = list(cases), {}
    for size in sorted({world_size(case) for case in chosen}):
        own = [case for case in chosen if world_size(case) == size]
        found |= run_distributed(run_cases, place, own, world_size=size)[0]
    return found


def saved(place: Path, case: Case) -> Path:
    """The checkpoints that a layout saved."""
    return place / case[0] / case[1] / "checkpoints"


def prepare(place: Path, names: Iterable[str]) -> None:
    """Convert examples, and write down the logits that every layout shall have.

    They are those of transformers; of an encoder-decoder, whose decoder alone is converted, those
    of Megatron in one process.
    """
    import torch

    from moe_megatron.checkpoint.convert import Execution, import_checkpoint
    from moe_megatron.testing import tiny_models

    for name in sorted(set(names)):
        model = tiny_models.save(name, place / name / "hf", fused=False)
        execution = Execution(progress=False)
        import_checkpoint(place / name / "hf", place / name / "megatron", execution=execution)
        tokens = torch.randint(0, model.config.vocab_size, TOKENS)
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                logits = _in_one_process(place / name / "megatron", tokens)
            else:
                logits = model(tokens).logits
        torch.save({"tokens": tokens, "logits": logits}, place / f"{name}.pt")


def _in_one_process(checkpoint: Path, tokens: Any) -> Any:
    """Logits of Megatron's model in this process."""
    from moe_megatron.checkpoint.formats import description
    from moe_megatron.checkpoint.formats.box_reader import BoxReader
    from moe_megatron.checkpoint.formats.torch_dist import TorchDist
    from moe_megatron.mcore.state.layered import layered_model

    with (
        TorchDist(checkpoint) as found,
        BoxReader(found) as boxes,
        layered_model(description.run_of(found.path), boxes.read) as model,
    ):
        return model(tokens)


# --- the program of a rank -----------------------------------------------------------------------


def run_cases(place: Path, cases: Sequence[Case]) -> dict[Case, Any]:
    """A rank's side of `measure`."""
    from moe_megatron.mcore import world

    found: dict[Case, Any] = {}
    for layout, name in cases:
        train = layout == TRAINING
        found[layout, name] = _train(place, name) if train else _compare(place, name, layout)
    world.leave()
    return found


def _compare(place: Path, name: str, layout: str) -> float:
    """Load a converted checkpoint and save it; say how far logits are from what they shall be."""
    import torch

    from moe_megatron.mcore.loop.callbacks import Callback
    from tests.functional.parallel_logits import parallel_logits

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

    unchanged = {
        "training.train_steps": 1,
        "training.learning_rate": 1e-30,
        "training.min_learning_rate": 0.0,
        "checkpoint.save_interval": 1,
        "moe.expert_bias_update_rate": 1e-30,
    }
    run(place / layout, place / name, LAYOUTS[layout][1] | unchanged, callbacks=(Compare(),))
    return answer[0]


def _train(place: Path, name: str) -> list[float]:
    """Train on from a converted checkpoint; the loss of each step."""
    from moe_megatron.mcore import world
    from moe_megatron.telemetry.sinks.jsonl import MetricsLog
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    sinks = SinkSet([MetricsLog()]) if world.rank() == 0 else None
    steps = {"training.train_steps": STEPS, "training.learning_rate": 5e-3}
    run_dir = run(place / "training", place / name, {**EP2, **steps}, sinks=sinks)
    if sinks is None:
        return []
    sinks.close()
    return [r.loss for r in step_records(run_dir) if r.loss is not None]


def run(runs: Path, example: Path, overrides: dict[str, Any], **more: Any) -> Path:
    """Run the engine from a converted checkpoint, on Megatron's mock data; the run's folder.

    Args:
        runs: Where the folder of the run goes, under the name of the example.
        example: Folder with the checkpoint, under `megatron`.
        overrides: Fields of the run.
        more: For `TrainingJob`.
    """
    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.run.machine import choose_machine

    folder = example / "megatron"
    config = apply_overrides(
        load_config(folder / "release" / "config.yaml"),
        {
            "checkpoint.load": str(folder),
            "checkpoint.save_interval": None,
            "data.sequence_length": TOKENS[1],
            "training.micro_batch_size": 1,
            "training.global_batch_size": 2,
            "training.precision": "fp32",
            "training.warmup_steps": 0,
            "training.eval_interval": None,
            **overrides,
        },
    )
    if config.model.add_bias:  # Megatron would add the biases of split experts twice
        config = apply_overrides(config, {"parallel.expert_tensor_parallel_size": 1})
    run_dir = runs / example.name
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=run_dir / "cache",
        vocab_size=config.data.vocab_size,
        end_of_document=0,
        run_dir=run_dir,
        megatron_log=run_dir / f"rank{world.rank()}.log",
        **more,
    )
    engine.run(job, choose_machine(config).settings)
    return run_dir

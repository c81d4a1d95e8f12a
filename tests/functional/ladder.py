"""Converted examples under Megatron's own loader, in every parallel layout.

Each layout compares logits, and saves what it loaded after a step whose learning rate is too small
to change it. The tests run some of the cases, `tools/verification_cards.py` all of them. This file
is also the program of each rank.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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


def programs(place: Path, cases: Iterable[Case]) -> Iterator[tuple[int, list[str]]]:
    """What to start, one after the other: a number of processes, and this program's arguments."""
    chosen = list(cases)
    for size in sorted({world_size(case) for case in chosen}):
        words = ["-".join(case) for case in chosen if world_size(case) == size]
        yield size, [__file__, str(place), *words]


def answers(place: Path) -> dict[Case, Any]:
    """What the programs found: the largest difference of logits, or the losses, by case."""
    found = {}
    for path in place.glob("world*.json"):
        for words, answer in json.loads(path.read_text()).items():
            layout, _, name = words.partition("-")
            found[layout, name] = answer
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


def _program(place: Path, words: Iterable[str]) -> None:
    from moe_megatron.mcore import world

    found = {}
    for word in words:
        layout, _, name = word.partition("-")
        found[word] = _train(place, name) if layout == TRAINING else _compare(place, name, layout)
    if world.rank() == 0:
        (place / f"world{os.environ['WORLD_SIZE']}.json").write_text(json.dumps(found))
    world.leave()


def _compare(place: Path, name: str, layout: str) -> float:
    """Load a converted checkpoint and save it; say how far logits are from what they shall be."""
    import torch
    from parallel_logits import parallel_logits  # beside this program

    from moe_megatron.mcore.loop.callbacks import Callback

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
    from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, MetricsLog, read_metrics
    from moe_megatron.telemetry.sinks.sink_set import SinkSet
    from moe_megatron.telemetry.values.records import StepRecord

    sinks = SinkSet([MetricsLog()]) if world.rank() == 0 else None
    steps = {"training.train_steps": STEPS, "training.learning_rate": 5e-3}
    run_dir = run(place / "training", place / name, {**EP2, **steps}, sinks=sinks)
    if sinks is None:
        return []
    sinks.close()
    records = read_metrics(run_dir / METRICS_FILE)
    return [r.loss for r in records if isinstance(r, StepRecord) and r.loss is not None]


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
            "training.global_batch_size": 4,
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


if __name__ == "__main__":
    _program(Path(sys.argv[1]), sys.argv[2:])

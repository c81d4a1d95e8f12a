"""Which checkpoint of a run is the best, by the value that `evaluation.best` names, and why.

It compares evaluations at the steps of checkpoints that are there. It does not know how checkpoints
are kept (`keeper`).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_megatron.config.checkpoint_files import METADATA, folders_by_step
from moe_megatron.config.evaluation import Metric
from moe_megatron.files import replace_file
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.task_scores import value_of

BEST_FILE = "best.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class BestCheckpoint:
    """The best checkpoint of a run."""

    step: int
    metric: str
    value: float
    checkpoint: str
    """Its folder."""
    compared: dict[int, float]
    """The values of all evaluations, by step, those before the first step among them."""
    better: int | None = None
    """The step of a better evaluation, of which there is no checkpoint."""

    def __str__(self) -> str:
        text = (
            f"best checkpoint: step {self.step:,}, {self.metric} {self.value:.4g} (of "
            f"{len(self.compared)} evaluations)"
        )
        if self.better is None:
            return text
        value = self.compared[self.better]
        return f"{text}; it was {value:.4g} at step {self.better:,}, which has no checkpoint"


def judged(record: EvalRecord, metric: Metric) -> float | None:
    """The value of an evaluation by which checkpoints are compared."""
    if record.tasks:
        return value_of(record.tasks, metric.kind, metric.task)
    return None if metric.task or metric.kind == "accuracy" else record.loss


def best_checkpoint(run_dir: Path, checkpoints: Path, metric: Metric) -> BestCheckpoint | None:
    """The best one that is there, the later of equal ones; None: none was evaluated.

    Args:
        run_dir: Folder of the run.
        checkpoints: Folder of its `iter_*` folders.
        metric: The value to judge by.

    Raises:
        DataError: The metrics of the run cannot be read.
    """
    values = {
        record.step: value
        for record in History.read(run_dir).evaluations
        if record.split == "validation" and (value := judged(record, metric)) is not None
    }
    there = folders_by_step(checkpoints) if checkpoints.is_dir() else {}
    folders = {
        step: folder
        for step, folder in there.items()
        if step in values and (folder / METADATA).is_file()
    }
    # A value that is no number is the worst.
    real = {step: value for step, value in values.items() if value == value}
    if not real.keys() & folders.keys():
        return None
    sign = -1.0 if metric.more_is_better else 1.0
    order = sorted(real, key=lambda it: (sign * real[it], -it))
    step = next(it for it in order if it in folders)
    return BestCheckpoint(
        step=step,
        metric=str(metric),
        value=real[step],
        checkpoint=str(folders[step]),
        compared=dict(sorted(real.items())),
        better=order[0] if real[order[0]] != real[step] else None,
    )


def write_best(run_dir: Path, best: BestCheckpoint) -> None:
    """Write it down beside the run's metrics."""
    replace_file(run_dir / BEST_FILE, [json.dumps(asdict(best), indent=2).encode() + b"\n"])

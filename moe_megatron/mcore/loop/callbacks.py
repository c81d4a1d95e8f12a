"""What hears of a run: the callbacks of its training loop, and what they are told.

The names follow the callbacks that later Megatron releases pass to `pretrain`. It does not know who
calls them, so that it can be imported without Megatron: `calling_back.py` does, and `saving.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.telemetry.values.task_scores import TaskScore


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnd:
    """What this rank knows at the end of a step."""

    step: int
    losses: dict[str, Any]
    """Averaged losses as device tensors; empty except on the last pipeline stage."""
    learning_rate: float | None
    grad_norm: float | None
    skipped: bool
    seconds: float
    """Wall time of the step on this rank, logging excluded."""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of this rank since the end of the previous step, by `telemetry.catalog.PHASES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksEvaluated:
    """The outcome of an evaluation by tasks, the same on every rank."""

    step: int
    scores: tuple[TaskScore, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationEnd:
    """The outcome of one evaluation on this rank."""

    step: int
    split: str
    """"validation" or "test"."""
    losses: dict[str, Any]
    """Averaged losses as device tensors; empty except on the last pipeline stage."""


class Callback:
    """Override what you need. Every method is called on every rank, at the same points."""

    def on_load_end(self, step: int, seconds: float) -> None:
        """The checkpoint of `step` has been loaded, in this time; the data is opened after it."""

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """The model is built and loaded; it has made `start_step` steps so far."""

    def on_train_end(self, model: list[Any]) -> None:
        """Training has ended, with its last step or by a signal; not called after an error."""

    def on_step_start(self, step: int) -> None:
        """A step begins; not called for steps that are left out."""

    def on_step_end(self, event: StepEnd) -> None:
        """A step has ended; called once per step."""

    def on_tasks_evaluated(self, event: TasksEvaluated) -> None:
        """Each task has been evaluated, in place of `on_evaluation_end` for validation."""

    def on_step_discarded(self, step: int) -> None:
        """What has been computed of a step does not count: it is computed again, or undone."""

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """An evaluation has ended."""

    def on_evaluations_end(self, step: int, seconds: float) -> None:
        """All evaluations after `step` have ended, and took this time together."""

    def on_checkpoint_start(self, step: int) -> None:
        """A checkpoint is about to be written."""

    def on_checkpoint_end(self, step: int) -> None:
        """A checkpoint has been written, or handed to the asynchronous writer."""

    def on_checkpoint_complete(self, step: int) -> None:
        """All files of a checkpoint are written, by the asynchronous writer too."""

    def on_checkpoint_failed(self, step: int, reason: str) -> None:
        """A checkpoint could not be written, and nothing is left of it; the run goes on."""

    def on_saves_end(self) -> None:
        """The run has ended in order, and every checkpoint is complete."""

    def on_rollback_start(self) -> None:
        """The run is about to go back: what it has recorded must be written."""

    def on_rolled_back(self, checkpoint: Path, step: int) -> None:
        """The run has gone back to this checkpoint, which was made after step `step`."""

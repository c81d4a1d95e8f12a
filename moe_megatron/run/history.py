"""A sink that keeps a run's records in memory, for results and notebooks."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from moe_megatron.errors import BackendUnavailableError
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

if TYPE_CHECKING:
    import pandas


RECENT = 10
"""Steps whose routing is kept whole; of the others, only the imbalance."""


def import_pandas(instead: str) -> Any:
    """pandas, which only DataFrames need.

    Raises:
        BackendUnavailableError: It is not installed; the message offers `instead`.
    """
    try:
        import pandas
    except ImportError:
        raise BackendUnavailableError(
            "a DataFrame needs pandas, which is not installed here; install it with `pip install "
            f"pandas`, or use {instead}."
        ) from None
    return pandas


@dataclass(slots=True, repr=False)
class History:
    """Everything a run reported, in order. Filled on rank 0 only."""

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)
    imbalances: dict[int, float] = field(default_factory=dict)
    """Imbalance of the most imbalanced layer, by step, where routing was measured."""
    recent: deque[RoutingSnapshot] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Routing of the last measured steps."""

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """What the files of a run folder hold, of all its attempts.

        Raises:
            DataError: A file is missing or malformed.
        """
        history = cls()
        for record in read_metrics(run_dir / METRICS_FILE):
            if isinstance(record, EvalRecord):
                history.evaluation(record)
            else:
                history.step(record, None)
        if (run_dir / ROUTING_FILE).exists():
            for snapshot in read_routing(run_dir / ROUTING_FILE):
                history._route(snapshot)
        return history

    def followed_by(self, later: "History") -> "History":
        """This and what a run that went on from it reported."""
        return History(
            steps=[*self.steps, *later.steps],
            evaluations=[*self.evaluations, *later.evaluations],
            imbalances=self.imbalances | later.imbalances,
            recent=deque([*self.recent, *later.recent], maxlen=RECENT),
        )

    def start(self, run: RunInfo) -> None:
        """Nothing to prepare: a second run appends."""

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Keep a step."""
        self.steps.append(record)
        if routing is not None:
            self._route(routing)

    def _route(self, routing: RoutingSnapshot) -> None:
        self.recent.append(routing)
        self.imbalances[routing.step] = float(np.nan_to_num(routing.imbalance).max())

    def evaluation(self, record: EvalRecord) -> None:
        """Keep an evaluation."""
        self.evaluations.append(record)

    def close(self) -> None:
        """Nothing to release."""

    @property
    def last_routing(self) -> RoutingSnapshot | None:
        """Routing of the last measured step."""
        return self.recent[-1] if self.recent else None

    @property
    def losses(self) -> list[float | None]:
        """Training loss of each step, in nats per token."""
        return [record.loss for record in self.steps]

    @property
    def last_evaluation(self) -> EvalRecord | None:
        """The newest evaluation, if there was one."""
        return self.evaluations[-1] if self.evaluations else None

    def columns(self) -> dict[str, list[Any]]:
        """One list for each column of `to_pandas`, with a value for each step."""
        validated = {it.step: it for it in self.evaluations if it.split == "validation"}
        validation = {step: it.loss for step, it in validated.items()}
        held_out = dict.fromkeys(name for it in validated.values() for name in it.measures)
        return {
            "step": [it.step for it in self.steps],
            "loss": self.losses,
            "validation_loss": [validation.get(it.step) for it in self.steps],
            "imbalance": [self.imbalances.get(it.step) for it in self.steps],
            "learning_rate": [it.learning_rate for it in self.steps],
            "grad_norm": [it.grad_norm for it in self.steps],
            "tokens": [it.tokens for it in self.steps],
            "seconds": [it.step_seconds for it in self.steps],
            "skipped": [it.skipped for it in self.steps],
            **{name: [it.measures.get(name) for it in self.steps] for name in self._measured()},
            **{
                f"validation_{name}": [
                    validated[it.step].measures.get(name) if it.step in validated else None
                    for it in self.steps
                ]
                for name in held_out
            },
        }

    def _measured(self) -> list[str]:
        """What the loss function of some step reported besides the loss, by name."""
        return list(dict.fromkeys(name for it in self.steps for name in it.measures))

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row for each step, by its number; NaN where nothing was measured.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        pandas = import_pandas("history.columns(), the same as plain lists")
        frame = pandas.DataFrame(self.columns()).set_index("step")
        measured = ["loss", "validation_loss", "imbalance", "learning_rate", "grad_norm"]
        return frame.astype(dict.fromkeys(measured, "float64"))

    def __repr__(self) -> str:
        return f"<History of {len(self.steps)} steps and {len(self.evaluations)} evaluations>"

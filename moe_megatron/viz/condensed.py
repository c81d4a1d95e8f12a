"""Reads a run directory and condenses it to at most `MAX_COLUMNS` columns over the steps.

It reads each file once, in bounded memory however long the run: when there are too many columns,
neighbouring ones are merged and their width in steps doubles. It knows the files of a run, not how
anything is drawn.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history import HISTORY_FOLDER, RoutingHistory
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MAX_COLUMNS = 200


class _Mergeable(Protocol):
    def merge(self, other: Self, /) -> None: ...


def merge_into[T: _Mergeable](columns: dict[int, T], index: int, item: T) -> None:
    """Adds `item` to what is at `index`, or puts it there."""
    if index in columns:
        columns[index].merge(item)
    else:
        columns[index] = item


class StepColumns[T: _Mergeable]:
    """Accumulators for ranges of steps: column i holds steps `i * width + 1 .. (i + 1) * width`."""

    def __init__(self, max_columns: int = MAX_COLUMNS) -> None:
        self.width = 1
        self._max_columns = max_columns
        self._columns: dict[int, T] = {}

    def add(self, step: int, item: T) -> None:
        """Merges `item` into the column of `step`; the column may be `item` itself."""
        merge_into(self._columns, max(0, step - 1) // self.width, item)
        while max(self._columns) - min(self._columns) >= self._max_columns:
            self.width *= 2
            wider: dict[int, T] = {}
            for index in sorted(self._columns):
                merge_into(wider, index // 2, self._columns[index])
            self._columns = wider

    def __iter__(self) -> Iterator[T]:
        """Yields the columns that are not empty, in the order of their steps."""
        return (self._columns[index] for index in sorted(self._columns))

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(slots=True)
class RunningMean:
    """Mean, minimum and maximum of the finite values that were added."""

    total: float = 0.0
    count: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float | None) -> None:
        """Adds `value` unless it is None or not finite."""
        if value is not None and math.isfinite(value):
            self.merge(RunningMean(value, 1, value, value))

    def merge(self, other: "RunningMean") -> None:
        """Adds all values of `other`."""
        self.total += other.total
        self.count += other.count
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    @property
    def mean(self) -> float:
        """The mean; NaN if no finite value was added."""
        return self.total / self.count if self.count else math.nan


@dataclass(slots=True)
class StepStats:
    """The metrics of a range of steps."""

    first_step: int
    last_step: int
    loss: RunningMean = field(default_factory=RunningMean)
    learning_rate: RunningMean = field(default_factory=RunningMean)
    grad_norm: RunningMean = field(default_factory=RunningMean)
    tokens_per_second: RunningMean = field(default_factory=RunningMean)

    @classmethod
    def of(cls, record: StepRecord) -> Self:
        """The metrics of one step."""
        stats = cls(record.step, record.step)
        stats.loss.add(record.loss)
        stats.learning_rate.add(record.learning_rate)
        stats.grad_norm.add(record.grad_norm)
        stats.tokens_per_second.add(record.tokens_per_second)
        return stats

    def merge(self, other: "StepStats") -> None:
        """Adds the steps of `other`."""
        self.first_step = min(self.first_step, other.first_step)
        self.last_step = max(self.last_step, other.last_step)
        self.loss.merge(other.loss)
        self.learning_rate.merge(other.learning_rate)
        self.grad_norm.merge(other.grad_norm)
        self.tokens_per_second.merge(other.tokens_per_second)


@dataclass(slots=True, kw_only=True)
class RunMetrics:
    """metrics.jsonl, condensed.

    Attributes:
        columns: metrics over the steps.
        evaluations: every evaluation, in the order of the file.
    """

    columns: StepColumns[StepStats] = field(default_factory=StepColumns)
    evaluations: list[EvalRecord] = field(default_factory=list)


def load_metrics(path: Path) -> RunMetrics:
    """Condenses a metrics.jsonl.

    Raises:
        DataError: the file is missing, malformed or has no step record.
    """
    metrics = RunMetrics()
    for record in read_metrics(path):
        if isinstance(record, EvalRecord):
            metrics.evaluations.append(record)
        else:
            metrics.columns.add(record.step, StepStats.of(record))
    if not len(metrics.columns):
        raise DataError(
            f"{path}: has no step record, but a picture needs one; train at least one step "
            "(moe-megatron train), then draw it again"
        )
    return metrics


def load_routing(path: Path) -> StepColumns[RoutingProfile]:
    """Condenses a routing.jsonl, or the folder of a routing history: a profile a range of steps.

    Raises:
        DataError: the file is missing, malformed, empty, or mixes differently shaped models.
    """
    columns: StepColumns[RoutingProfile] = StepColumns()
    for snapshot in _snapshots(path):
        columns.add(snapshot.step, RoutingProfile.from_snapshots([snapshot]))
    if not len(columns):
        raise DataError(
            f"{path}: has no routing snapshot, but a picture needs one; train at least one step "
            "(moe-megatron train), then draw it again"
        )
    return columns


def _snapshots(path: Path) -> Iterator[RoutingSnapshot]:
    return RoutingHistory(path).snapshots() if path.is_dir() else read_routing(path)


def load_windows(path: Path, ends: Sequence[int] | None, most: int) -> list[RoutingProfile]:
    """The routing of ranges of steps, without those that have none.

    Args:
        path: A routing.jsonl, or the folder of a routing history.
        ends: The last step of each range, rising; None: ranges of equal width.
        most: How many there are at most, if no ends are given.

    Raises:
        DataError: the file is missing, malformed or has no snapshot in these ranges.
    """
    columns: StepColumns[RoutingProfile] = StepColumns(most)
    windows: dict[int, RoutingProfile] = {}
    for snapshot in _snapshots(path):
        profile = RoutingProfile.from_snapshots([snapshot])
        if ends is None:
            columns.add(snapshot.step, profile)
        elif snapshot.step <= ends[-1]:
            merge_into(windows, bisect_left(ends, snapshot.step), profile)
    found = list(columns) or list(windows.values())
    if not found:
        asked = "" if ends is None else f" up to step {ends[-1]}"
        raise DataError(
            f"{path}: has no routing snapshot{asked}; train at least that far, or give later steps."
        )
    return found


def recorded_routing(run_dir: Path) -> Path | None:
    """routing.jsonl of a run directory, or else its history; None if it has neither."""
    paths = (run_dir / name for name in (ROUTING_FILE, HISTORY_FOLDER))
    return next((path for path in paths if path.exists()), None)

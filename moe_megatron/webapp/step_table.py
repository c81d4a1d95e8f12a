"""The steps of metrics.jsonl in memory that does not grow with them, and evaluations.

Up to `MOST_ROWS` steps are kept one by one. Of a longer run, neighbours are added together, so that
a row stands for two steps, then four. It knows records, not files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moe_megatron.telemetry.values.json_fields import Float64Array
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.webapp.columns import Span

MOST_ROWS = 2**17
_MOST_EVALUATIONS = 2**13

_MEASURED = ("loss", "learning_rate", "grad_norm", "memory_bytes")
_SUMMED = ("tokens", "seconds", "skipped")
_COLUMNS = (
    "last",
    *_SUMMED,
    *_MEASURED,
    *(f"{name}_count" for name in _MEASURED),
    "timed_steps",
    "peak_memory_bytes",
)
"""Further columns, as many as a run has expert parallel ranks, add up the time of each."""
_AT = {name: place for place, name in enumerate(_COLUMNS)}
_PEAK = _AT["peak_memory_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMeans:
    """Means over columns of steps, NaN where a column has no value. Each [columns]."""

    loss: Float64Array
    learning_rate: Float64Array
    grad_norm: Float64Array
    memory_bytes: Float64Array
    peak_memory_bytes: Float64Array
    """The highest of a column, not a mean"""
    tokens_per_second: Float64Array
    expert_rank_seconds: Float64Array
    """[columns, ranks]; no ranks where none was timed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """All steps in a few numbers.

    Attributes:
        tokens: tokens of all steps.
        seconds: time of all steps.
        skipped: steps whose update was skipped.
        lowest_loss: of a step, or of the mean of a row; NaN if none was finite.
        typical_speed: median of the tokens per second; NaN without a step.
    """

    tokens: int
    seconds: float
    skipped: int
    lowest_loss: float
    typical_speed: float


class StepTable:
    """The steps and evaluations of one run, in the order of their numbers."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self.first_step = 0
        self.last_step = 0
        self.total_steps = 0
        """Steps that the run is planned to take."""
        self.last: StepRecord | None = None
        self.loss: float | None = None
        """The last known one."""
        self.evaluations: list[EvalRecord] = []
        self._most_rows = most_rows
        self._rows = np.zeros((1024, len(_COLUMNS)))
        self._size = 0
        self._pending = 0
        """Steps in the last row."""
        self._width = 1

    def add(self, record: StepRecord | EvalRecord) -> None:
        """Add the next record; a step that was there takes back itself and those after it."""
        if isinstance(record, EvalRecord):
            self.evaluations = [*self.evaluations, record][-_MOST_EVALUATIONS:]
            return
        if record.step <= self.last_step:
            self._size = int(np.searchsorted(self._lasts, record.step))
            self._pending = self._width
        self.first_step = self.first_step if self._size else record.step
        self.last_step, self.total_steps, self.last = record.step, record.total_steps, record
        self.loss = self.loss if record.loss is None else record.loss
        if self._pending >= self._width or not self._size:
            self._new_row()
        self._make_room_for(len(record.expert_rank_seconds))
        self._add_to(self._rows[self._size - 1], record)
        self._pending += 1

    @property
    def _lasts(self) -> Float64Array:
        return self._rows[: self._size, _AT["last"]]

    def _add_to(self, row: Float64Array, record: StepRecord) -> None:
        row[_AT["last"]] = record.step
        row[_AT["tokens"]] += record.tokens
        row[_AT["seconds"]] += record.step_seconds
        row[_AT["skipped"]] += record.skipped
        for name in _MEASURED:
            value = getattr(record, name)
            if value is not None and np.isfinite(value):
                row[_AT[name]] += value
                row[_AT[f"{name}_count"]] += 1
        row[_PEAK] = max(row[_PEAK], record.peak_memory_bytes or 0)
        seconds = record.expert_rank_seconds
        if seconds and len(row) == len(_COLUMNS) + len(seconds):
            row[_AT["timed_steps"]] += 1
            row[len(_COLUMNS) :] += seconds

    def _make_room_for(self, ranks: int) -> None:
        """Have a column for each expert parallel rank; of another number, none is known before."""
        if ranks and self._rows.shape[1] != len(_COLUMNS) + ranks:
            rows = self._rows[:, : len(_COLUMNS)]
            rows[:, _AT["timed_steps"]] = 0
            self._rows = np.hstack([rows, np.zeros((len(rows), ranks))])

    def _new_row(self) -> None:
        if self._size == self._most_rows:
            self._halve()
        if self._size == len(self._rows):
            longer = min(2 * self._size, self._most_rows)
            self._rows = np.concatenate(
                [self._rows, np.zeros((longer - self._size, self._rows.shape[1]))]
            )
        self._rows[self._size] = 0.0
        self._size += 1
        self._pending = 0

    def _halve(self) -> None:
        pairs = self._rows[: self._size].reshape(self._size // 2, 2, -1)
        lasts, peaks = pairs[:, 1, _AT["last"]].copy(), pairs[:, :, _PEAK].max(axis=1)
        self._size //= 2
        self._rows[: self._size] = pairs.sum(axis=1)
        self._rows[: self._size, _AT["last"]] = lasts
        self._rows[: self._size, _PEAK] = peaks
        self._width *= 2

    def means(self, spans: Sequence[Span]) -> StepMeans:
        """The means of columns, which follow each other."""
        edges = np.searchsorted(self._lasts, [first for first, _ in spans] + [spans[-1][1] + 1])
        sums, peaks = np.zeros((len(spans), self._rows.shape[1])), np.full(len(spans), np.nan)
        for place, (start, end) in enumerate(pairwise(edges.tolist())):
            sums[place] = self._rows[start:end].sum(axis=0)
            peaks[place] = self._rows[start:end, _PEAK].max(initial=0) or np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            return StepMeans(
                peak_memory_bytes=peaks,
                tokens_per_second=sums[:, _AT["tokens"]] / sums[:, _AT["seconds"]],
                expert_rank_seconds=sums[:, len(_COLUMNS) :] / sums[:, [_AT["timed_steps"]]],
                **{name: sums[:, _AT[name]] / sums[:, _AT[f"{name}_count"]] for name in _MEASURED},
            )

    def seconds_until(self, steps: Sequence[int]) -> Float64Array:
        """Time that steps took, from the first one to each of these. [steps]

        Of steps that are kept together, all or none count.
        """
        total = np.concatenate([[0.0], np.cumsum(self._rows[: self._size, _AT["seconds"]])])
        until: Float64Array = total[np.searchsorted(self._lasts, steps, side="right")]
        return until

    def totals(self) -> StepTotals:
        """All steps in a few numbers."""
        rows = self._rows[: self._size]
        tokens, seconds, skipped = (rows[:, _AT[name]] for name in _SUMMED)
        measured = rows[rows[:, _AT["loss_count"]] > 0]
        losses = measured[:, _AT["loss"]] / measured[:, _AT["loss_count"]]
        timed = seconds > 0
        speeds = tokens[timed] / seconds[timed]
        return StepTotals(
            tokens=int(tokens.sum()),
            seconds=float(seconds.sum()),
            skipped=int(skipped.sum()),
            lowest_loss=float(losses.min()) if losses.size else np.nan,
            typical_speed=float(np.median(speeds)) if speeds.size else np.nan,
        )

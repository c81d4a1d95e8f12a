"""The time that the steps of a run took, and which of them were lost.

A step is lost when the run goes on from a checkpoint before it. It knows metrics.jsonl, not the
journal.
"""

import array
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics, read_metrics_after
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSteps:
    """Steps on record that a resume loses."""

    reached: int
    """The last step on record."""
    reached_at: float
    """When it was recorded, in seconds since 1970."""
    steps: int
    """Number of lost steps."""
    seconds: float
    """Time that they took."""


def lost_after(run_dir: Path, step: int) -> LostSteps | None:
    """What is on record after `step`; None if there is no readable metrics.jsonl.

    Call it before the file is rewound.
    """
    path = run_dir / METRICS_FILE
    try:
        reached_at = path.stat().st_mtime
        lost = [r for r in read_metrics_after(path, step) if isinstance(r, StepRecord)]
    except (OSError, DataError) as error:
        logger.debug("no lost steps are known: %s", error)
        return None
    return LostSteps(
        reached=max((record.step for record in lost), default=step),
        reached_at=round(reached_at, 3),
        steps=len(lost),
        seconds=sum(record.step_seconds for record in lost),
    )


class StepTimes:
    """The times of the steps on record, one record at a time.

    Where the numbers of steps go back, the steps that are made again are lost; files of runs that
    rewind them do not go back.

    Args:
        after: Steps up to this one are not counted: they are from before the journal.
    """

    def __init__(self, after: int = 0) -> None:
        self._after = after
        self._steps = array.array("q")
        self._seconds = array.array("d")
        self._typical = (0, 0.0)
        """At how many steps the median was taken, and what it was."""
        self.kept_seconds = 0.0
        """Time of the steps that were kept and made an update."""
        self.skipped: dict[int, float] = {}
        """Time of each kept step that made no update."""
        self.lost_steps = 0
        """Steps that records after them take back."""
        self.lost_seconds = 0.0
        self.total_steps: int | None = None
        """Steps that the whole run is planned to take."""

    @classmethod
    def read(cls, run_dir: Path, after: int = 0) -> Self:
        """The steps in the metrics.jsonl of a run; none if there is no such file.

        Raises:
            DataError: A line is malformed.
        """
        times = cls(after)
        path = run_dir / METRICS_FILE
        if path.exists():
            times.extend(read_metrics(path))
        return times

    def extend(self, records: Iterable[StepRecord | EvalRecord]) -> None:
        """Add the steps among the records, in order."""
        for record in records:
            if isinstance(record, StepRecord):
                self.add(record)

    def add(self, record: StepRecord) -> None:
        """Add the next step."""
        self.total_steps = record.total_steps
        while self._steps and self._steps[-1] >= record.step:
            self._lose_last()
        if record.step <= self._after:
            return
        self._steps.append(record.step)
        self._seconds.append(record.step_seconds)
        if record.skipped:
            self.skipped[record.step] = record.step_seconds
        else:
            self.kept_seconds += record.step_seconds

    def rewind(self, last_step: int) -> None:
        """Forget the steps after `last_step`: the journal says what was lost."""
        while self._steps and self._steps[-1] > last_step:
            self._remove_last()

    def _lose_last(self) -> None:
        self.lost_seconds += self._remove_last()
        self.lost_steps += 1

    def _remove_last(self) -> float:
        step, seconds = self._steps.pop(), self._seconds.pop()
        if self.skipped.pop(step, None) is None:
            self.kept_seconds -= seconds
        return seconds

    @property
    def last(self) -> int | None:
        """The last step on record."""
        return self._steps[-1] if self._steps else None

    @property
    def kept(self) -> int:
        """Number of steps that were kept and made an update."""
        return len(self._steps) - len(self.skipped)

    @property
    def typical(self) -> float:
        """Median time of a step, taken anew when a tenth more are known; 0.0 without steps."""
        number, median = self._typical
        if self._steps and not number <= len(self._steps) < 1.1 * number:
            number, median = len(self._steps), float(np.median(np.frombuffer(self._seconds)))
            self._typical = (number, median)
        return median

"""The routing of any window of a run: of one step, of all of them, of a thousand columns.

The history has most steps; those that are newer than its last flush are in routing.jsonl, which
alone serves a run without a history. Sums over aligned blocks of steps are kept, up to
`KEPT_BYTES`, so that a window of a long run reads its ends alone; those that are not are made of
the sums that the history has itself. It knows no other file of a run.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history import HISTORY_FOLDER, RoutingHistory
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
    read_routing_after,
    read_routing_between,
)
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.webapp.columns import Span, aligned, column_width
from moe_megatron.webapp.routing_rows import ModelShape, RoutingRows

KEPT_BYTES = 64 * 2**20
"""Of sums over blocks, for each run that is open."""
KEPT_COLUMNS = 4096
"""Columns whose values are kept, for each run that is open."""
_BLOCKS = (256, 1024, 4096, 16384, 65536)
"""Steps of a block that is kept; each is the sum of four of the size before."""

Stamp = tuple[int, int, int]


class RoutingWindows:
    """Windows of the routing of one run, which may be training.

    Args:
        run_dir: Its folder.

    Raises:
        DataError: The history is damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self._log = run_dir / ROUTING_FILE
        self._folder = run_dir / HISTORY_FOLDER
        self._history: RoutingHistory | None = None
        self._stamps: tuple[Stamp | None, Stamp | None] = (None, None)
        self._sums: OrderedDict[Span, RoutingProfile] = OrderedDict()
        self._values: OrderedDict[tuple[Callable[[RoutingProfile], Any], Span], Any] = OrderedDict()
        self.newest: RoutingSnapshot | None = None
        """The last step in routing.jsonl; None without the file."""
        self.shape: ModelShape | None = None
        """None while no step is recorded."""
        self.first_step = self.last_step = 0
        self.refresh()

    def refresh(self) -> bool:
        """Look for new steps; returns whether there may be any.

        Raises:
            DataError: A file is damaged.
        """
        stamps = (_stamp(self._folder / "zarr.json"), _stamp(self._log))
        if stamps == self._stamps:
            return False
        history, log = (new != old for new, old in zip(stamps, self._stamps, strict=True))
        if history:
            self._open_history(stamps[0])
        if log:
            self._look_at_log(stamps[1])
        self._stamps = stamps
        self._measure()
        return True

    def _open_history(self, stamp: Stamp | None) -> None:
        before = 0 if self._history is None else self._history.last_step
        if stamp is None:
            self._history = None
        elif self._history is None:
            self._history = RoutingHistory(self._folder)
        else:
            self._history.refresh()
        if self._history is None or self._history.last_step < before:
            self.forget()

    def _look_at_log(self, stamp: Stamp | None) -> None:
        newest = None if stamp is None else next(read_routing_after(self._log, 0), None)
        if newest is None or (self.newest is not None and newest.step < self.newest.step):
            self.forget()
        self.newest = newest

    def _measure(self) -> None:
        """Which steps there are, and of which model."""
        history, newest = self._history, self.newest
        if history is not None and history.last_step >= history.first_step:
            self.shape = ModelShape(
                layers=history.layers, num_experts=history.num_experts, top_k=history.top_k
            )
            self.first_step, self.last_step = history.first_step, history.last_step
            if newest is not None:
                self.last_step = max(self.last_step, newest.step)
        elif newest is not None:
            self.shape = ModelShape(
                layers=newest.layers, num_experts=newest.num_experts, top_k=newest.top_k
            )
            first = next(read_routing(self._log), None)
            self.first_step = newest.step if first is None else first.step
            self.last_step = newest.step
        else:
            self.shape, self.first_step, self.last_step = None, 0, 0

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the quantities that were measured."""
        if self._history is not None:
            return self._history.quantities
        return () if self.newest is None else tuple(self.newest.per_layer)

    def profile(self, first: int, last: int) -> RoutingProfile:
        """The sum of what was measured in a window.

        Raises:
            DataError: The run has no routing, or a file is damaged.
        """
        profile = self._shape().empty_profile()
        first, last = max(first, self.first_step), min(last, self.last_step)
        self._add(profile, first, last, len(_BLOCKS) - 1)
        return profile

    def columns(self, first: int, last: int, most: int) -> Iterator[tuple[Span, RoutingProfile]]:
        """The sum of each column of a window, of at most `most` columns; see `columns`.

        Raises:
            DataError: As of `profile`.
        """
        first, last = max(first, self.first_step), min(last, self.last_step)
        yield from self._columns(first, last, column_width(first, last, max(1, most)))

    def values[T](
        self, compute: Callable[[RoutingProfile], T], first: int, last: int, most: int
    ) -> list[tuple[Span, T]]:
        """What a function makes of each column of a window; of a column it is asked once.

        Args:
            compute: A function of a module, by which what it made is found again.
            first: First step of the window.
            last: Last step of it.
            most: Columns at most.

        Raises:
            DataError: As of `profile`.
        """
        first, last = max(first, self.first_step), min(last, self.last_step)
        width = column_width(first, last, max(1, most))
        spans, kept = list(aligned(first, last, width)), self._values
        if missing := [span for span in spans if (compute, span) not in kept]:
            for span, profile in self._columns(missing[0][0], last, width):
                kept[compute, span] = compute(profile)
        found = [(span, kept[compute, span]) for span in spans]
        for span in spans:
            kept.move_to_end((compute, span))
        while len(kept) > KEPT_COLUMNS:
            kept.popitem(last=False)
        return found

    def _columns(self, first: int, last: int, width: int) -> Iterator[tuple[Span, RoutingProfile]]:
        if width >= _BLOCKS[0]:
            for span in aligned(first, last, width):
                yield span, self.profile(*span)
            return
        for begin, end in aligned(first, last, _BLOCKS[0]):
            parts = list(self._rows(begin, end, width))
            for span in aligned(begin, end, width):
                profile = self._shape().empty_profile()
                for rows in parts:
                    rows.add_to(profile, *span)
                yield span, profile

    def forget(self) -> None:
        """Forget what is kept of windows: steps were taken back, and made again."""
        self._sums.clear()
        self._values.clear()

    def _shape(self) -> ModelShape:
        if self.shape is None:
            raise DataError(
                f"{self._log.parent.name} has no routing: neither {self._log.name} nor the folder "
                f"{self._folder.name} has a step. Choose another run, or wait for its first step."
            )
        return self.shape

    def _add(self, profile: RoutingProfile, first: int, last: int, level: int) -> None:
        """Add a window: whole blocks of this level from what is kept, the rest from below."""
        if level < 0:
            if first <= last:
                for rows in self._rows(first, last):
                    rows.add_to(profile, first, last)
            return
        size = _BLOCKS[level]
        begin = -(-(first - 1) // size) * size  # whole blocks are begin + 1 .. end
        end = last // size * size
        if begin >= end:
            self._add(profile, first, last, level - 1)
            return
        self._add(profile, first, begin, level - 1)
        for start in range(begin, end, size):
            profile.merge(self._block((start + 1, start + size), level))
        self._add(profile, end + 1, last, level - 1)

    def _block(self, span: Span, level: int) -> RoutingProfile:
        if (kept := self._sums.get(span)) is not None:
            self._sums.move_to_end(span)
            return kept
        summed = self._shape().empty_profile()
        self._add(summed, *span, level - 1)
        self._sums[span] = summed
        most = max(8, KEPT_BYTES // max(1, summed.tokens_per_expert.nbytes))
        while len(self._sums) > most:
            self._sums.popitem(last=False)
        return summed

    def _rows(self, first: int, last: int, width: int = 0) -> Iterator[RoutingRows]:
        """The rows of a window, at most a block at a time: of the history, then of the log.

        Args:
            first: First step of the window.
            last: Last step of it.
            width: Steps of the columns that are wanted of it; 0: it is wanted as a whole.
        """
        history_end = 0 if self._history is None else self._history.last_step
        for begin, end in aligned(first, min(last, history_end), _BLOCKS[0]):
            yield self._from_history(begin, end, width)
        shape = self._shape()
        for begin, end in aligned(max(first, history_end + 1), last, _BLOCKS[0]):
            found = self._from_log(begin, end)
            for snapshot in found:
                if (snapshot.layers, snapshot.num_experts) != (shape.layers, shape.num_experts):
                    raise DataError(
                        f"{self._log}: step {snapshot.step} is of another model than the history; "
                        "move one of them away."
                    )
            yield RoutingRows.of(shape, begin, end, found)

    def _from_log(self, first: int, last: int) -> list[RoutingSnapshot]:
        """What routing.jsonl has of a window; the newest step, which is asked most, is at hand."""
        if self.newest is None:
            return []
        if first == last == self.newest.step:
            return [self.newest]
        return list(read_routing_between(self._log, first, last))

    def _from_history(self, first: int, last: int, width: int) -> RoutingRows:
        history = self._history
        assert history is not None
        each = history.sum_steps
        summed = bool(each) and not ((first - 1) % each or last % each or width % each)
        return RoutingRows(
            first=first,
            each=each if summed else 1,
            tokens=history.tokens(first, last),
            counts=(history.sums if summed else history.tokens_per_expert)(first, last),
            assigned=history.series("assigned", first, last),
            dropped=history.series("dropped", first, last),
            values={name: history.series(name, first, last) for name in history.quantities},
        )


def _stamp(path: Path) -> Stamp | None:
    """What changes with the content of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

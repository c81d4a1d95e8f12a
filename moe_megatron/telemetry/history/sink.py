"""Writes every step's routing to the history while training goes on.

`step` copies one snapshot into the unfinished chunk of each array. A chunk that is full, and every
`flush_seconds` what there is of it, goes to a writer thread, so that a slow disk or bucket delays
neither training nor the other sinks; only when the next chunk is full before the last one is
written does `step` wait. A kill loses what came after the last flush. Before a checkpoint
`SinkSet.flush` has everything written, so a resumed run finds all steps up to its own.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history.layout import (
    COUNTS,
    LAYER_COUNTS,
    TOKENS,
    ArrayLayout,
    Description,
    HistoryLayout,
)
from moe_megatron.telemetry.history.location import Location, parse_location
from moe_megatron.telemetry.history.store import Array, HistoryStore, read_description
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)

_LARGEST_COUNT = np.iinfo(np.int32).max


class HistorySink:
    """Sink that appends routing snapshots to a history.

    Args:
        address: a folder, or s3://bucket/prefix or gs://bucket/prefix.
        flush_seconds: longest time that a step waits in memory.

    Raises:
        ConfigError: the address is none of these.
    """

    def __init__(self, address: str | Path, flush_seconds: float = 10.0) -> None:
        self._location = parse_location(address)
        self._flush_seconds = flush_seconds
        self._store: HistoryStore | None = None
        self._tails: dict[str, _Tail] = {}
        self._writing: _Writing | None = None
        self._last_step = 0
        self._unwritten = False
        self._flushed_at = 0.0

    def start(self, run: RunInfo) -> None:
        """Opens the history, or begins one, and on resume takes back steps after the checkpoint.

        Raises:
            DataError: what is there is damaged or of another model.
            OSError: the place cannot be written.
        """
        if not run.layers:
            return
        layout = HistoryLayout(
            layers=run.layers,
            num_experts=run.num_experts,
            top_k=run.top_k,
            quantities=run.quantities,
        )
        self._store = _open_or_create(self._location, layout, run.start_step)
        self._tails = {
            array.name: _Tail(array, self._store.chunk_steps(array.name))
            for array in self._store.description.layout.arrays()
        }
        kept = self._store.description.last_step
        for name, tail in self._tails.items():
            tail.resume(self._store, name, kept)
        self._last_step = kept
        # A killed writer may have left rows after the last whole step: they must not come to be
        # believed when the history grows over them.
        self._unwritten = run.start_step > 0
        self._flushed_at = time.monotonic()

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Keeps `routing`, if the step measured it.

        Raises:
            DataError: the step is not after the last one, or a count is beyond int32.
            OSError: an earlier flush failed.
        """
        if self._store is None or routing is None:
            return
        if routing.step <= self._last_step:
            raise DataError(
                f"step {routing.step} comes after step {self._last_step}; a history grows one "
                "step after the other"
            )
        if routing.tokens > _LARGEST_COUNT:
            raise DataError(
                f"{routing.tokens} tokens in a step; a history counts up to {_LARGEST_COUNT}"
            )
        row = routing.step - 1
        if any(row >= tail.end for tail in self._tails.values()):
            self._hand_over()
            for tail in self._tails.values():
                tail.move_to(row)
        values = {TOKENS: routing.tokens, COUNTS: routing.tokens_per_expert, **routing.per_layer}
        values |= {name: getattr(routing, name) for name in LAYER_COUNTS}
        for name, tail in self._tails.items():
            if name in values:  # a quantity that this run lacks stays NaN
                tail.put(row, values[name])
        self._last_step, self._unwritten = routing.step, True
        if time.monotonic() - self._flushed_at >= self._flush_seconds and self._is_idle():
            self._hand_over()

    def evaluation(self, record: EvalRecord) -> None:
        """Keeps nothing: evaluations do not train routers."""

    def flush(self) -> None:
        """Returns when all steps so far are on disk.

        Raises:
            OSError: they cannot be written.
        """
        if self._store is not None:
            self._hand_over()
            self._wait()

    def close(self) -> None:
        """Writes what is left. Later steps are ignored.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self.flush()
        finally:
            self._store = None

    def _hand_over(self) -> None:
        """Has what is not written yet written, once the last such order is done."""
        self._wait()
        assert self._store is not None
        if self._unwritten:
            store, last_step = self._store, self._last_step
            rows = {name: tail.rows() for name, tail in self._tails.items()}
            self._writing = _Writing(lambda: store.write(rows, last_step))
            self._unwritten = False
        self._flushed_at = time.monotonic()

    def _is_idle(self) -> bool:
        return self._writing is None or not self._writing.is_alive()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.finish()
            except BaseException:
                self._store = None  # nothing is tried again: `close` comes next
                raise


class _Writing(threading.Thread):
    """One flush on its way. A daemon: a bucket that hangs must not keep the process alive."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(name="routing-history", daemon=True)
        self._write = write
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Writes, and keeps what goes wrong for `finish`."""
        try:
            self._write()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Waits, and raises what went wrong."""
        self.join()
        if self._error is not None:
            raise self._error


class _Tail:
    """The chunk of an array that is not full yet, in memory."""

    def __init__(self, array: ArrayLayout, chunk_steps: int) -> None:
        self._array = array
        self._first = 0
        self._values: Array = np.empty((chunk_steps, *array.row_shape), array.dtype)
        self._values.fill(array.fill_value)

    @property
    def end(self) -> int:
        """The row after the last one of the chunk."""
        return self._first + len(self._values)

    def resume(self, store: HistoryStore, name: str, num_rows: int) -> None:
        """Takes up the chunk where a history of `num_rows` rows ends."""
        self.move_to(num_rows)
        kept = num_rows - self._first
        if kept:
            self._values[:kept] = store.read(name, (slice(self._first, num_rows),))

    def move_to(self, row: int) -> None:
        """Begins the chunk of `row`, if this is not it."""
        chunk_steps = len(self._values)
        first = row // chunk_steps * chunk_steps
        if first != self._first:
            self._first = first
            self._values.fill(self._array.fill_value)

    def put(self, row: int, value: object) -> None:
        self._values[row - self._first] = value

    def rows(self) -> tuple[int, Array]:
        """The whole chunk and its first row; a copy, which the writer may keep."""
        return self._first, self._values.copy()


def _open_or_create(location: Location, layout: HistoryLayout, start_step: int) -> HistoryStore:
    found = read_description(location)
    if found is not None and start_step == 0 and location.folder is not None:
        _set_aside(location.folder)
        found = None
    if found is None:
        description = Description(layout=layout, first_step=start_step + 1, last_step=start_step)
        return HistoryStore(location, description, for_writing=True, create=True)
    if replace(found.layout, quantities=layout.quantities) != layout:
        raise DataError(
            f"the routing history {location.text} is of layers {found.layout.layers} with "
            f"{found.layout.num_experts} experts and top_k {found.layout.top_k}, this run has "
            f"layers {layout.layers} with {layout.num_experts} experts and top_k {layout.top_k}; "
            "move it away, or choose another place with telemetry.history_address"
        )
    store = HistoryStore(location, found, for_writing=True)
    store.add_quantities(layout.quantities)
    if found.last_step > start_step:
        logger.info("%s: taking back steps after %d", location.text, start_step)
    elif found.last_step < start_step:
        logger.warning(
            "%s ends at step %d, but the run resumes after step %d; the steps between are missing",
            location.text,
            found.last_step,
            start_step,
        )
    store.truncate(min(found.last_step, start_step))
    return store


def _set_aside(folder: Path) -> None:
    """Keeps the history of an earlier run that a new run from step 0 would otherwise end."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists():
        shutil.rmtree(old)
    folder.rename(old)
    logger.warning("%s is of an earlier run; it is kept as %s", folder, old.name)

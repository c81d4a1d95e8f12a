"""Writes every step's routing to the history during training.

`step` copies one snapshot into the unfinished chunk of each array. A writer thread writes full
chunks, and every `flush_seconds` also unfinished ones, so that a slow disk or bucket delays neither
training nor the other sinks. `step` waits only if the next chunk is full before the last one is
written. What could not be written is kept and written by the next attempt. A killed run loses what
came after the last flush. `SinkSet.flush` writes everything before a checkpoint, so a resumed run
finds all steps up to its own.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.locations import Location
from moe_megatron.telemetry.earlier_run import set_aside
from moe_megatron.telemetry.history.layout import (
    COUNTS,
    LAYER_COUNTS,
    SUM_STEPS,
    SUMS,
    TOKENS,
    ArrayLayout,
    Description,
    HistoryLayout,
)
from moe_megatron.telemetry.history.location import history_location
from moe_megatron.telemetry.history.store import Array, HistoryStore, read_description
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)

_LARGEST_COUNT = np.iinfo(np.int32).max


class HistorySink:
    """Sink that appends routing snapshots to a history.

    Args:
        address: a folder, or s3://bucket/prefix or gs://bucket/prefix.
        flush_seconds: longest time that a step stays in memory only.

    Raises:
        ConfigError: the address is none of these.
    """

    name = "history"

    def __init__(self, address: str | Path, flush_seconds: float = 10.0) -> None:
        self._location = history_location(address)
        self._flush_seconds = flush_seconds
        self._store: HistoryStore | None = None
        self._tails: dict[str, _Tail] = {}
        self._writing: _Writing | None = None
        self._failed: Callable[[], None] | None = None
        self._begun_anew = False
        self._last_step = 0
        self._unwritten = False
        self._flushed_at = 0.0

    def start(self, run: RunInfo) -> None:
        """Opens or creates the history, and on resume removes the steps after the checkpoint.

        Raises:
            DataError: an existing history is damaged or belongs to another model.
            OSError: the history cannot be written.
        """
        if not run.layers:
            return
        layout = HistoryLayout(
            layers=run.layers,
            num_experts=run.num_experts,
            top_k=run.top_k,
            quantities=run.quantities,
            sum_steps=SUM_STEPS,
        )
        self._set_aside_earlier(run.start_step)
        self._store = _open_or_create(self._location, layout, run.start_step)
        self._tails = {
            array.name: _Tail(array, self._store.chunk_steps(array.name))
            for array in self._store.description.layout.arrays()
        }
        kept = self._store.description.last_step
        for name, tail in self._tails.items():
            tail.resume(self._store, name, kept)
        self._last_step = kept
        # A killed writer may have left rows after the last complete step. They are overwritten, so
        # that they do not become part of the history as it grows.
        self._unwritten = run.start_step > 0
        self._flushed_at = time.monotonic()

    def _set_aside_earlier(self, start_step: int) -> None:
        """Moves away the history of an earlier run, once: `start` may be called again."""
        folder = self._location.folder
        if start_step == 0 and folder is not None and not self._begun_anew:
            if read_description(self._location) is not None:
                set_aside(folder)
            self._begun_anew = True

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Keeps `routing`, if the step measured it.

        Raises:
            DataError: the step is not after the last one, or has too many tokens for int32.
            OSError: an earlier flush failed; it is tried again by the next call.
        """
        if self._store is None or routing is None:
            return
        if routing.step <= self._last_step:
            raise DataError(
                f"step {routing.step} cannot follow step {self._last_step}: steps of a history "
                "must increase"
            )
        if routing.tokens > _LARGEST_COUNT:
            raise DataError(
                f"a step has {routing.tokens} tokens; a history counts at most {_LARGEST_COUNT}"
            )
        # Before the step is kept: a step for which this raises is given again.
        if self._failed is not None:
            self._finish_writing()
        if time.monotonic() - self._flushed_at >= self._flush_seconds and self._is_idle():
            self._start_writing()
        row = routing.step - 1
        if any(row >= tail.end for tail in self._tails.values()):
            self._start_writing()
            for tail in self._tails.values():
                tail.move_to(row)
        counts = routing.tokens_per_expert
        values = {TOKENS: routing.tokens, COUNTS: counts, SUMS: counts, **routing.per_layer}
        values |= {name: getattr(routing, name) for name in LAYER_COUNTS}
        for name, tail in self._tails.items():
            if name in values:  # a quantity that this run lacks stays NaN
                tail.add(row, values[name])
        self._last_step, self._unwritten = routing.step, True

    def rewind(self, run: RunInfo) -> None:
        """Opens the history anew, without the steps after `run.start_step`.

        Raises:
            OSError: it cannot be written.
        """
        self.flush()
        self.start(run)

    def evaluation(self, record: EvalRecord) -> None:
        """Keeps nothing: evaluations do not train routers."""

    def flush(self) -> None:
        """Writes all steps so far and returns when they are on disk.

        Raises:
            OSError: they cannot be written.
        """
        if self._store is not None:
            self._start_writing()
            self._finish_writing()

    def close(self) -> None:
        """Writes the remaining steps. Later steps are ignored.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self.flush()
        finally:
            self._store = None

    def _start_writing(self) -> None:
        """Starts to write the unwritten rows in the background, after any earlier write is done."""
        self._finish_writing()
        assert self._store is not None
        if self._unwritten:
            store, last_step = self._store, self._last_step
            rows = {name: tail.rows() for name, tail in self._tails.items()}
            folder = self._location.folder

            def write() -> None:
                if folder is not None and not folder.is_dir():  # it would come back half filled
                    raise FileNotFoundError(errno.ENOENT, "it was removed")
                store.write(rows, last_step)

            self._writing = _Writing(write)
            self._unwritten = False
        self._flushed_at = time.monotonic()

    def _is_idle(self) -> bool:
        return self._writing is None or not self._writing.is_alive()

    def _finish_writing(self) -> None:
        writing, self._writing = self._writing, None
        if self._failed is not None:
            writing, self._failed = _Writing(self._failed), None
        if writing is not None:
            try:
                writing.finish()
            except BaseException:
                self._failed = writing.write  # its rows are nowhere else
                raise


class _Writing(threading.Thread):
    """One write in progress; a daemon, so that a hanging bucket cannot keep the process alive."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(name="routing-history", daemon=True)
        self.write = write
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Writes, and keeps any error for `finish`."""
        try:
            self.write()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Waits until it is written, and raises its error if there was one."""
        self.join()
        if self._error is not None:
            raise self._error


class _Tail:
    """The unfinished last chunk of an array, in memory."""

    def __init__(self, array: ArrayLayout, chunk_steps: int) -> None:
        self._array = array
        self._first = 0
        rows = array.rows(chunk_steps)
        self._values: Array = np.empty((rows, *array.row_shape), array.dtype)
        self._values.fill(array.fill_value)

    @property
    def end(self) -> int:
        """The step after the last one of the chunk, counted from 0."""
        return (self._first + len(self._values)) * self._array.row_steps

    def resume(self, store: HistoryStore, name: str, num_steps: int) -> None:
        """Loads the chunk in which a history of so many steps ends."""
        self.move_to(num_steps)
        whole, begun = divmod(num_steps, self._array.row_steps)
        kept = whole - self._first
        if kept:
            self._values[:kept] = store.read(name, (slice(self._first, whole),))
        if begun:  # what is stored may be of steps that were taken back, too
            steps = store.read(COUNTS, (slice(num_steps - begun, num_steps),))
            self._values[kept] = steps.sum(axis=0, dtype=self._array.dtype)

    def move_to(self, step: int) -> None:
        """Begins the chunk that contains a step, counted from 0, unless it is the current one."""
        chunk_rows = len(self._values)
        first = step // self._array.row_steps // chunk_rows * chunk_rows
        if first != self._first:
            self._first = first
            self._values.fill(self._array.fill_value)

    def add(self, step: int, value: object) -> None:
        """Adds a step of the current chunk: as a row, or to the sum that it belongs to."""
        row = step // self._array.row_steps - self._first
        if self._array.row_steps > 1:
            self._values[row] += value
        else:
            self._values[row] = value

    def rows(self) -> tuple[int, Array]:
        """The number of the chunk's first row, and a copy of the whole chunk."""
        return self._first, self._values.copy()


def _open_or_create(location: Location, layout: HistoryLayout, start_step: int) -> HistoryStore:
    found = read_description(location)
    if found is None or (start_step == 0 and location.folder is not None):
        description = Description(layout=layout, first_step=start_step + 1, last_step=start_step)
        return HistoryStore(location, description, for_writing=True, create=True)
    same = replace(found.layout, quantities=layout.quantities, sum_steps=layout.sum_steps)
    if same != layout:
        raise DataError(
            f"the routing history {location.text} has layers {found.layout.layers} with "
            f"{found.layout.num_experts} experts and top_k {found.layout.top_k}, but this run has "
            f"layers {layout.layers} with {layout.num_experts} experts and top_k {layout.top_k}; "
            "move it away, or choose another place with telemetry.history_address"
        )
    store = HistoryStore(location, found, for_writing=True)
    store.add_quantities(layout.quantities)
    if found.last_step > start_step:
        logger.info("%s: removing steps after %d", location.text, start_step)
    elif found.last_step < start_step:
        logger.warning(
            "%s ends at step %d, but the run resumes after step %d; the steps in between are "
            "missing",
            location.text,
            found.last_step,
            start_step,
        )
    store.truncate(min(found.last_step, start_step))
    return store

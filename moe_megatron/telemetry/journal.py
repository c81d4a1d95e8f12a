"""RUN/events.jsonl: what happened to a run beside its steps, in the order in which it happened.

One JSON object a line, with `time` (seconds since 1970), `kind` and further fields. The file only
grows: unlike metrics.jsonl, it is not rewound when a run resumes. The launcher and rank 0 append
whole lines, which the kernel keeps apart. It does not know what readers make of the events.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from moe_megatron.errors import DataError
from moe_megatron.reading import lines, open_regular, parse_json

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"

EventKind = Literal[
    "launched",  # the launcher has started the ranks: host, pid, processes; in a batch job also
    # job, restart, step (of the newest checkpoint)
    "attempt",  # the ranks are about to build the model: attempt, world_size, host, pid, started
    "resumed",  # an attempt goes on from a checkpoint, or anew: step, seconds, and what is lost:
    # reached (last step made before), reached_at (time), lost_steps, lost_seconds
    "first_step",  # the first step of an attempt has ended: step, seconds
    "saving",  # a checkpoint is about to be written: step
    "saved",  # a checkpoint is complete: step, seconds (the time the loop waited)
    "save_failed",  # a checkpoint could not be written, and the run goes on: step, seconds, reason
    "evaluated",  # an evaluation has ended: step, seconds
    "set_aside",  # a checkpoint was found damaged: step, reason
    "removed",  # retention removed a checkpoint: step
    "skipped",  # a step made no update: step, reason
    "rolled_back",  # the run went back to a checkpoint: step, to_step, left_out, reason, seconds
    # (to load it), and what is lost: lost_steps, lost_seconds
    "masked",  # an expert was taken out of routing: step, layer, expert, reason
    "unmasked",  # an expert takes part again: step, layer, expert
    "hang",  # nothing moved in time: rank (null: all wait), host, step, seconds, stacks
    "sink_failed",  # a log or sink cannot be written: sink, reason
    "sink_restored",  # it can again: sink
    "rank_died",  # a process of the run ended by itself: rank, reason
    "restarting",  # the launcher starts the ranks again: attempt, reason
    "trained",  # the ranks have left the training loop in order: step, interrupted (by a signal)
    "stopping",  # a signal asks the run to end: signal
    "asked",  # somebody asks something of the run through its folder: what ("checkpoint", "stop"),
    # reason (why it is not done)
    "ended",  # the run or an attempt is over: code (see `moe_megatron.errors`), reason
]
"""The kinds of events, with the fields each has."""

_MOST_LINE_BYTES = 2**20
_LATEST = 2**36
"""Seconds since 1970, in the year 4147."""
_LARGEST = 2**53
_KINDS = frozenset(get_args(EventKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the journal."""

    time: float
    """When it happened, in seconds since 1970."""
    kind: EventKind
    fields: Mapping[str, Any] = field(default_factory=dict)


def note(run_dir: Path | None, kind: EventKind, **fields: Any) -> None:
    """Append one event to the journal of a run.

    A journal that cannot be written is no reason to end a run: the event is logged instead.

    Args:
        run_dir: Folder of the run; None writes nothing.
        kind: What happened.
        fields: JSON values that describe it.
    """
    try:
        append_event(run_dir, kind, fields)
    except OSError as error:
        logger.warning("cannot note %s %s in %s: %s", kind, fields, EVENTS_FILE, error.strerror)


def append_event(run_dir: Path | None, kind: EventKind, fields: Mapping[str, Any]) -> None:
    """As `note`, for callers that try again; `fields` may hold the `time` at which it happened.

    Raises:
        OSError: It cannot be written.
    """
    assert kind in _KINDS, f"unknown kind of event: {kind}"
    if run_dir is None:
        return
    line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields})
    data = f"{line}\n".encode()
    descriptor = os.open(run_dir / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # One write of a file opened for appending is not interleaved with those of others.
        end = os.fstat(descriptor).st_size
        written = os.write(descriptor, data)
        if written < len(data):  # a full disk takes what fits: half a line is removed again
            if os.fstat(descriptor).st_size == end + written:
                os.ftruncate(descriptor, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def read_events(run_dir: Path) -> Iterator[Event]:
    """Yield the events of a run, oldest first; none if there is no journal.

    Lines that are no event (half-written on a full disk, or of a later version) are skipped.
    """
    yield from JournalReader(run_dir).new()


class JournalReader:
    """Reads the events of a run, each once, as `read_events` does."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS_FILE
        self._position = 0

    def new(self) -> Iterator[Event]:
        """Yield the events that were written since the last call."""
        try:
            file = open_regular(self._path)
        except OSError:
            return
        with file:
            file.seek(self._position)
            try:
                for line in lines(file, _MOST_LINE_BYTES):
                    if line.endswith(b"\n"):
                        self._position += len(line)
                    if event := _parse(line.decode(errors="replace")):
                        yield event
            except ValueError as error:
                raise DataError(
                    f"{self._path} is no journal from byte {self._position} on ({error}); cut it "
                    "off there, or move it away."
                ) from error


def _parse(line: str) -> Event | None:
    try:
        data = parse_json(line)
    except ValueError:
        return None
    if not isinstance(data, dict) or str(data.get("kind")) not in _KINDS:
        return None
    moment, kind = data.pop("time", None), data.pop("kind")
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        return None
    if not 0 <= moment <= _LATEST or any(map(_is_odd, data.values())):
        return None
    return Event(time=float(moment), kind=kind, fields=data)


def _is_odd(value: object) -> bool:
    """Whether it is a number that nothing in a run can be: infinite, or beyond all counting."""
    return isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST

"""Which logs and sinks of a process work, and how much they have lost.

Whoever writes tells it; the exporter, the journal of the run and the log of the process show it. An
outage is said once when it begins and once when it ends. An event that the journal cannot take,
often because the same disk is full, is noted later with the time at which it happened. It does not
know what a sink writes, nor when it tries again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_megatron.telemetry.journal import EventKind, append_event

logger = logging.getLogger(__name__)

_KEPT_EVENTS = 100
"""Events that wait for a journal that cannot be written; of more, the first ones."""


@dataclass(frozen=True, slots=True)
class SinkState:
    """One sink."""

    broken: bool = False
    """Whether it cannot be written now."""
    outages: int = 0
    """How often it could not be written."""
    dropped: int = 0
    """Records or lines that it has lost."""

    def __add__(self, other: "SinkState") -> "SinkState":
        return SinkState(
            self.broken or other.broken,
            self.outages + other.outages,
            self.dropped + other.dropped,
        )


class SinkHealth:
    """The state of every sink that was ever broken; any thread may call it.

    Args:
        run_dir: Folder of the run, for the journal; None keeps none.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self._lock = threading.RLock()
        self._states: dict[str, SinkState] = {}
        self._unnoted: deque[tuple[EventKind, dict[str, Any]]] = deque()

    def failed(self, sink: str, reason: str) -> None:
        """A sink cannot be written; only the first call of an outage is an event."""
        with self._lock:
            state = self._states.get(sink, SinkState())
            if state.broken:
                return
            self._states[sink] = replace(state, broken=True, outages=state.outages + 1)
            self._note("sink_failed", sink=sink, reason=reason)
        logger.warning(
            "sink %s failed: %s; training goes on, and the sink is tried again", sink, reason
        )

    def restored(self, sink: str) -> None:
        """A sink works; only the first call after an outage is an event."""
        with self._lock:
            state = self._states.get(sink)
            if state is None or not state.broken:
                return
            self._states[sink] = replace(state, broken=False)
            self._note("sink_restored", sink=sink, dropped=state.dropped)
        logger.warning("sink %s works again; lost so far: %d records", sink, state.dropped)

    def dropped(self, sink: str, number: int = 1) -> None:
        """A sink has lost records."""
        with self._lock:
            if not number:
                return
            state = self._states.get(sink, SinkState())
            self._states[sink] = replace(state, dropped=state.dropped + number)

    def states(self) -> Mapping[str, SinkState]:
        """The sinks that were ever broken or have lost something, by name."""
        with self._lock:
            return dict(self._states)

    def _note(self, kind: EventKind, **fields: Any) -> None:
        if len(self._unnoted) < _KEPT_EVENTS:
            self._unnoted.append((kind, {"time": round(time.time(), 3), **fields}))
        # Not by `note`, which logs: handlers of this log may wait for us with locks of their own.
        with suppress(OSError):
            while self._unnoted:
                append_event(self.run_dir, *self._unnoted[0])
                self._unnoted.popleft()

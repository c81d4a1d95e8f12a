"""Where the wall time of this process goes: a stopwatch for each phase, without overlap.

Time inside a nested phase belongs to that phase alone, so the phases and "other" add up to the time
that passed. It is the clock of the host: on a GPU work is only launched, and its time shows where
the host next waits for it. It does not know what the phases are.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OTHER = "other"


class PhaseClock:
    """Adds up the time of phases between two laps.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._lap_started = clock()
        self._nested = [0.0]
        """Time spent in inner phases, for each phase that is open; first, for none."""

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time inside the context, less that of phases measured within."""
        started = self._clock()
        self._nested.append(0.0)
        try:
            yield
        finally:
            elapsed = self._clock() - started
            own = elapsed - self._nested.pop()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + own
            self._nested[-1] += elapsed

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap, the rest as "other"; call it outside phases."""
        now = self._clock()
        seconds, self._seconds = self._seconds, {}
        seconds[OTHER] = max(0.0, now - self._lap_started - sum(seconds.values()))
        self._lap_started, self._nested = now, [0.0]
        return seconds

"""Where the wall time of this process goes: one stopwatch per phase, without overlap.

Time inside a nested phase belongs to that phase alone, so the phases and "other" add up to the time
that passed. Times are the host's: work on a GPU is only launched, and shows up in the phase in
which the host next waits for it. This module does not know what the phases are.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OTHER = "other"


class PhaseClock:
    """Adds up the time of phases between two laps.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._lap_started = clock()
        self._nested = [0.0]
        """Time spent in nested phases: first outside of any phase, then for each open phase."""
        self._open: list[str] = []

    def current(self) -> str:
        """The innermost open phase; other threads may ask."""
        phases = self._open
        return phases[-1] if phases else OTHER

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time inside the context to a phase, minus that of phases nested in it."""
        started = self._clock()
        self._nested.append(0.0)
        self._open = [*self._open, phase]
        try:
            yield
        finally:
            self._open = self._open[:-1]
            elapsed = self._clock() - started
            own = elapsed - self._nested.pop()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + own
            self._nested[-1] += elapsed

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last lap, the rest as "other"; call it outside all phases."""
        now = self._clock()
        seconds, self._seconds = self._seconds, {}
        seconds[OTHER] = max(0.0, now - self._lap_started - sum(seconds.values()))
        self._lap_started, self._nested = now, [0.0]
        return seconds

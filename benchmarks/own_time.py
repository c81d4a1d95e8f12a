"""Processor time of telemetry's own code, step by step.

Where a machine is too busy for pairs of steps to say what telemetry costs, this still can: other
programs hardly change how long its own code computes. It does not see what that code does to the
rest, by taking its place in caches; for that there are the pairs.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from moe_megatron.mcore.layers import measured_router

COUNTERS, END, SINKS = "counters", "end of step", "sinks"


class OwnTime:
    """Of this process; `steps` holds seconds of every step that was taken, by part."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {COUNTERS: [], END: [], SINKS: []}
        self._spent = dict.fromkeys(self.steps, 0.0)
        self._sinks_before = 0.0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add what this thread computes inside to a part of the step."""
        started = time.thread_time()
        try:
            yield
        finally:
            self._spent[part] += time.thread_time() - started

    @contextmanager
    def watching_routers(self) -> Iterator[None]:
        """Add every count of a router inside to the counters of the step."""
        original = measured_router.count

        def count(*arguments: Any) -> None:
            with self.of(COUNTERS):
                original(*arguments)

        measured_router.count = count
        try:
            yield
        finally:
            measured_router.count = original

    def take(self, sinks: Thread | None) -> None:
        """End a step.

        Args:
            sinks: The thread that all sinks work in, where there is one.
        """
        if sinks is not None and sinks.ident is not None and sinks.is_alive():
            now = time.clock_gettime(time.pthread_getcpuclockid(sinks.ident))
            self._spent[SINKS], self._sinks_before = now - self._sinks_before, now
        for part, seconds in self._spent.items():
            self.steps[part].append(seconds)
        self._spent = dict.fromkeys(self.steps, 0.0)

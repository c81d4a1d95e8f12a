"""When each child process ended.

torchrun looks at its workers ten times a second, keeps no times, and then ends the others itself.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from moe_megatron.platform.processes import Process

_SECONDS = 0.02


class DeathClock:
    """Watches the children of this process while its context is open."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}
        """When a child ended, in seconds since 1970, by process id."""
        self._known: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="death-clock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS):
            self._known.update(children(os.getpid()))
            for pid in self._known - self.times.keys():
                if Process.of(pid) is None:
                    self.times[pid] = time.time()


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found

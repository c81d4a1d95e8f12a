"""When each child process ended.

torchrun looks at its workers ten times a second, keeps no times, and then ends the others itself.
"""

import contextlib
import os
import select
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from moe_megatron.platform.processes import Process

_LOOK_SECONDS = 0.02
"""How often children are looked for while there are none, or a new one has just been found."""
_LOOKS = 100
"""So many times; then only every `_REST_SECONDS`."""
_REST_SECONDS = 1.0


class DeathClock:
    """Watches the children of this process while its context is open.

    It sleeps until the kernel says that one has ended.
    """

    def __init__(self) -> None:
        self.times: dict[int, float] = {}
        """When a child ended, in seconds since 1970, by process id."""
        self._watched: dict[int, int] = {}
        """Process id by the descriptor that tells of its end."""
        self._looked_at: set[int] = set()
        """Those of which the kernel does not tell."""
        self._poll = select.poll()
        self._looks = 0
        self._thread = threading.Thread(target=self._watch, name="death-clock", daemon=True)

    def __enter__(self) -> Self:
        self._done = os.eventfd(0)
        self._poll.register(self._done, select.POLLIN)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._done, 1)
        self._thread.join()
        for descriptor in (self._done, *self._watched):
            os.close(descriptor)

    def _watch(self) -> None:
        ended: list[int] = []
        while self._done not in ended:
            for descriptor in ended:
                self._note(descriptor)
            self._find()
            self._looks += bool(self._watched)
            often = self._looks < _LOOKS or self._looked_at
            seconds = _LOOK_SECONDS if often else _REST_SECONDS
            ended = [descriptor for descriptor, _ in self._poll.poll(seconds * 1000)]

    def _note(self, descriptor: int) -> None:
        self.times[self._watched.pop(descriptor)] = time.time()
        self._poll.unregister(descriptor)
        os.close(descriptor)

    def _find(self) -> None:
        for pid in self._looked_at - self.times.keys():
            if Process.of(pid) is None:
                self.times[pid] = time.time()
        known = {*self.times, *self._watched.values(), *self._looked_at}
        for pid in set(children(os.getpid())) - known:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self.times[pid] = time.time()
                continue
            except OSError:  # before Linux 5.3, or forbidden in a container
                self._looked_at.add(pid)
                continue
            self._watched[descriptor], self._looks = pid, 0
            self._poll.register(descriptor, select.POLLIN)


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found

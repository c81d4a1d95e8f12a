"""Memory of a tree of processes over time: proportional set size, so that shared pages count once.

Linux only. It does not know what the processes do.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path


def memory_of(process: int) -> int:
    """Bytes of a process; pages it shares with n processes count 1/n. 0 if it has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


def descendants(process: int) -> list[int]:
    """All processes below a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


class Sampler:
    """Samples the memory of processes while its `with` block lasts.

    Args:
        interval: Seconds between samples.
        processes: Their ids; None: everything below this process.
    """

    def __init__(self, interval: float = 0.1, processes: Sequence[int] | None = None) -> None:
        self._interval = interval
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[tuple[float, int]] = []
        """Time, by `time.monotonic`, and bytes."""

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self, begins: Sequence[tuple[str, float]]) -> dict[str, int]:
        """The largest sample in each part of a run.

        Args:
            begins: Names of parts in their order, and when each began; a name may come again. The
                last marks the end.
        """
        largest: dict[str, int] = {}
        for (name, begin), (_, end) in itertools.pairwise(begins):
            within = (nbytes for at, nbytes in self.samples if begin <= at <= end)
            largest[name] = max(largest.get(name, 0), *within, 0)
        return largest

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            own = descendants(os.getpid()) if self._processes is None else self._processes
            total = sum(map(memory_of, own))
            self.samples.append((time.monotonic(), total))

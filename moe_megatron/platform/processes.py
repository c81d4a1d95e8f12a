"""Which process is meant by a process id, also after the id has been given to another one.

A process is its id together with the moment at which the kernel started it. It knows only processes
of this machine (of this container, where each has ids of its own).
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Process:
    """One process, for ever."""

    pid: int
    started: int
    """When, in clock ticks since the machine was started."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has an id now; None if there is none, or it has ended."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    @classmethod
    def this(cls) -> Self:
        """This process."""
        process = cls.of(os.getpid())
        assert process is not None
        return process

    @classmethod
    def read(cls, text: str) -> Self | None:
        """A process as `str` writes it; None for other text."""
        pid, _, started = text.partition("-")
        return cls(int(pid), int(started)) if pid.isdecimal() and started.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}"

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return _start_time(self.pid) == self.started


def machine() -> str:
    """What two processes share exactly if one can look at the other's id."""
    return " ".join((socket.gethostname(), *process_space()))


def process_space() -> tuple[str, str]:
    """The start of this machine, and the container on it, within which an id is one process.

    Raises:
        OSError: The kernel does not tell.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, os.readlink("/proc/self/ns/pid")


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name of the program, in parentheses, may contain anything.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])

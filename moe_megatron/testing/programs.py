"""Starts programs as a user would: in a session of their own, with output to a file.

This is for tests of launching itself: command lines, torchrun, signals. For tests of ranks alone,
`distributed` starts them in a fraction of the time.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil


def interruptible() -> None:
    """Restore the default handling of Ctrl-C; the `preexec_fn` of programs that tests interrupt.

    A shell that starts the tests in the background, or `nohup`, makes them ignore the signal, and
    programs that they start would inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Program:
    """A started program."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Its stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """All processes of the program seen so far that are still running, without zombies."""
        try:
            parent = psutil.Process(self.process.pid)
            self.seen |= {p.pid: p for p in (parent, *parent.children(recursive=True))}
        except psutil.NoSuchProcess:
            pass
        return [p for p in self.seen.values() if _runs(p)]

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Wait until the program has written `text`.

        Raises:
            AssertionError: It ended without it, or time is up.
        """
        deadline = time.monotonic() + seconds
        while text not in self.output:
            self.family()  # remembers processes while they can still be found
            assert self.process.poll() is None, f"it ended before {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"it did not write {text!r}:\n{self.output}"
            time.sleep(0.05)

    def press_ctrl_c(self) -> None:
        """Send SIGINT to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = 240) -> int:
        """Wait for the end; returns the exit code."""
        self.family()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill all processes that are still running."""
        for process in self.family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


def start_program(
    words: Sequence[object],
    *,
    log: Path,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """Start a program without a GPU and without input.

    Args:
        words: Its command line.
        log: File for its output.
        directory: Working directory.
        environment: Variables to add to those of this process.
    """
    added = {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=directory,
            env=os.environ | added,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=interruptible,
        )
    return Program(process, log)


def _runs(process: psutil.Process) -> bool:
    """Whether a process is still running; it may end during the check."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

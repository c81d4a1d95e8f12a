"""Programs as a user starts them: in a session of their own, with output in a file to watch.

For what is about launching itself: command lines, torchrun, signals. Where only the ranks matter,
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
    """Let Ctrl-C end this process again: the `preexec_fn` of programs that a test interrupts.

    A shell that starts the tests in the background, or `nohup`, lets them ignore the signal, and
    what they start would inherit that.
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
        """What it has written so far, to stdout and stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """The program's processes that were seen and still run, zombies left out."""
        try:
            parent = psutil.Process(self.process.pid)
            self.seen |= {p.pid: p for p in (parent, *parent.children(recursive=True))}
        except psutil.NoSuchProcess:
            pass
        return [p for p in self.seen.values() if _runs(p)]

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Wait until it has written something.

        Raises:
            AssertionError: It ended before, or time is up.
        """
        deadline = time.monotonic() + seconds
        while text not in self.output:
            self.family()  # now, because who has ended by the end could not be found any more
            assert self.process.poll() is None, f"it ended before {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {text!r} came:\n{self.output}"
            time.sleep(0.05)

    def press_ctrl_c(self) -> None:
        """What a terminal does: the signal goes to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = 240) -> int:
        """Wait for the end; returns the exit code."""
        self.family()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill what still runs."""
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
        directory: Where it works.
        environment: Variables beside those of this process.
    """
    given = {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, words)),
            cwd=directory,
            env=os.environ | given,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=interruptible,
        )
    return Program(process, log)


def _runs(process: psutil.Process) -> bool:
    """Whether it still runs; it may end while it is asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

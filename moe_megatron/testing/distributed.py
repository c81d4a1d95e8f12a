"""Runs a function on every rank of a process group, for tests.

    losses = run_distributed(train, config, world_size=2)      # one result per rank
    assert run_distributed(answer, world_size=4)[0] == 42      # the result of rank 0

The function finds RANK, WORLD_SIZE, MASTER_ADDR and the like in its environment, as under torchrun,
and must create its process group itself. It must be importable by name, from a test file or
elsewhere; its arguments and results are pickled.

    with start_ranks(train_without_end, folder) as ranks:      # runs in the background
        ranks.wait_for("step 3/")
        os.kill(ranks.processes[1], signal.SIGKILL)
        first, second = ranks.wait()
    assert second.exit_code == -signal.SIGKILL
    assert "has ended" in first.output

Ranks are forked from a warm server and see no CUDA device. With `fresh=True` each is a new
interpreter, which takes eight seconds of CPU time, for tests of imports, CUDA or interpreter exit.
"""

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_megatron.testing import fork_server
from moe_megatron.testing.ports import free_port
from moe_megatron.testing.rank import Task

NO_LAUNCHER: Mapping[str, str | None] = dict.fromkeys(
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
)
"""Value for `environment` that imitates a single process started without a launcher."""
GRACE_SECONDS = 20.0
"""How long the other ranks may run after one has failed, before they are killed."""
_POLL_SECONDS = 0.01
_SHOWN = 6_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RankEnd:
    """How a rank ended."""

    rank: int
    process: int
    exit_code: int
    """The exit code; if negative, the number of the signal that killed the rank."""
    was_ended: bool
    """Whether we killed it, because another rank had failed or time was up."""
    output: str
    """Its stdout and stderr."""
    returned: bool
    """Whether the function returned; one that calls `sys.exit(0)` does not."""
    result: Any
    """The result of the function; None if it did not return."""

    @property
    def description(self) -> str:
        """How it ended, in words."""
        if self.was_ended:
            return f"rank {self.rank} was still running and was killed"
        if self.exit_code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.exit_code).name}"
        if not self.exit_code and not self.returned:
            return f"rank {self.rank} ended before its function returned"
        return f"rank {self.rank} ended with code {self.exit_code}"


class RankError(AssertionError):
    """A rank did not return from its function; the message says how the ranks ended."""

    def __init__(self, ends: Sequence[RankEnd], reason: str = "") -> None:
        self.ends = tuple(ends)
        # Ranks that failed by themselves come first.
        order = sorted(ends, key=lambda end: (end.was_ended, end.returned, end.rank))
        parts = [f"{end.description}:\n{end.output[-_SHOWN:]}" for end in order]
        super().__init__("\n".join([*([reason] if reason else []), *parts]))


class Ranks:
    """Running ranks; a `with` statement kills those that are still running at its end."""

    def __init__(self, tasks: Sequence[Task], folder: Path, *, fresh: bool) -> None:
        self._tasks, self._folder = tasks, folder
        self._popen: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: dict[int, int] = {}
        self._ended_by_us: set[int] = set()
        self._first_failure = math.inf
        start = self._start_interpreter if fresh else fork_server.shared().fork
        self.processes: list[int] = []
        """Process ids, by rank. Each leads a process group."""
        try:
            for task in tasks:
                self.processes.append(start(task))
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def output(self, rank: int = 0) -> str:
        """The output of a rank so far."""
        path = Path(self._tasks[rank].output)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def running(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank in range(len(self.processes)) if self._exit_code(rank) is None]

    def wait_for(self, text: str, *, rank: int = 0, seconds: float = 240.0) -> None:
        """Wait until a rank has written `text`.

        Raises:
            RankError: The rank ended without it, another rank failed, or time is up.
        """
        deadline = time.monotonic() + seconds
        while text not in self.output(rank):
            ended = rank not in self.running()
            if ended and text in self.output(rank):
                return
            if ended or time.monotonic() > min(deadline, self._first_failure + GRACE_SECONDS):
                self.kill()
                raise RankError(self._ends(), f"rank {rank} did not write {text!r}")
            time.sleep(_POLL_SECONDS)

    def send_signal(self, number: int) -> None:
        """Send a signal to every running rank."""
        for rank in self.running():
            os.kill(self.processes[rank], number)

    def wait(self, seconds: float = 300.0, *, grace: float = GRACE_SECONDS) -> list[RankEnd]:
        """Wait until all ranks have ended; after one fails, the others are killed a little later.

        Args:
            seconds: Seconds after which all are killed.
            grace: Seconds for which the others may run after one has failed.

        Raises:
            RankError: Time is up.
        """
        deadline = time.monotonic() + seconds
        while running := self.running():
            now = time.monotonic()
            if now > min(deadline, self._first_failure + grace):
                self.kill()
            if now > deadline:
                raise RankError(self._ends(), f"not all had ended after {seconds:g} s")
            self._exit_code(running[0], seconds=_POLL_SECONDS)
        return self._ends()

    def kill(self) -> None:
        """Kill every running rank, and the processes that it has started."""
        for rank in self.running():
            self._ended_by_us.add(rank)
            try:
                os.killpg(self.processes[rank], signal.SIGKILL)
            except ProcessLookupError:
                continue
        while running := self.running():
            self._exit_code(running[0], seconds=_POLL_SECONDS)

    def _start_interpreter(self, task: Task) -> int:
        file = Path(f"{task.result}.task")
        file.write_bytes(pickle.dumps(task))
        popen = subprocess.Popen(
            [sys.executable, "-m", "moe_megatron.testing.rank", str(file)],
            env=task.environment | {"PYTHONPATH": os.pathsep.join(filter(None, task.path))},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._popen[popen.pid] = popen
        return popen.pid

    def _exit_code(self, rank: int, *, seconds: float = 0.0) -> int | None:
        if rank not in self._codes:
            process = self.processes[rank]
            if popen := self._popen.get(process):
                code = popen.poll()
                if code is None:
                    time.sleep(seconds)
            else:
                code = fork_server.shared().exit_code(process, seconds=seconds)
            if code is None:
                return None
            self._codes[rank] = code
            if code:
                self._first_failure = min(self._first_failure, time.monotonic())
        return self._codes[rank]

    def _ends(self) -> list[RankEnd]:
        ends = []
        for rank, (task, process) in enumerate(zip(self._tasks, self.processes, strict=True)):
            result = Path(task.result)
            ends.append(
                RankEnd(
                    rank=rank,
                    process=process,
                    exit_code=self._codes[rank],
                    was_ended=rank in self._ended_by_us and self._codes[rank] == -signal.SIGKILL,
                    output=self.output(rank),
                    returned=result.exists(),
                    result=pickle.loads(result.read_bytes()) if result.exists() else None,
                )
            )
        return ends


def start_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    world_size: int = 2,
    environment: Mapping[str, str | None] | None = None,
    directory: Path | None = None,
    fresh: bool = False,
) -> Ranks:
    """Start a function on every rank, and return at once.

    Args:
        function: The function to call on each rank; must be importable by name.
        arguments: Its arguments, the same on every rank; must be picklable.
        world_size: Number of ranks.
        environment: Variables to add to those of this process; `{rank}` in a value is replaced by
            the rank, and None removes a variable.
        directory: Working directory of the ranks; by default that of this process.
        fresh: Start new interpreters, which see this machine's GPUs, instead of forking.

    Raises:
        TypeError: The function cannot be imported by name.
    """
    folder = Path(tempfile.mkdtemp(prefix="ranks"))
    world = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        **({} if fresh else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    tasks = []
    for rank in range(world_size):
        own = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for name, value in (environment or {}).items():
            own.pop(name, None)
            if value is not None:
                own[name] = value.replace("{rank}", str(rank))
        tasks.append(
            Task.of(
                function,
                arguments,
                result=str(folder / f"result{rank}"),
                output=str(folder / f"output{rank}.txt"),
                directory=str(directory or Path.cwd()),
                environment=own,
                path=list(sys.path),
            )
        )
    return Ranks(tasks, folder, fresh=fresh)


def run_distributed[T](
    function: Callable[..., T],
    *arguments: Any,
    world_size: int = 2,
    environment: Mapping[str, str | None] | None = None,
    directory: Path | None = None,
    timeout: float = 300.0,
    fresh: bool = False,
) -> list[T]:
    """Call a function on every rank, and return the results by rank.

    Args:
        function: The function to call on each rank; must be importable by name.
        arguments: Its arguments, the same on every rank; must be picklable.
        world_size: Number of ranks.
        environment: Variables to add to those of this process; `{rank}` in a value is replaced by
            the rank, and None removes a variable.
        directory: Working directory of the ranks; by default that of this process.
        timeout: Seconds after which the ranks are killed.
        fresh: Start new interpreters, which see this machine's GPUs, instead of forking.

    Raises:
        RankError: A rank raised an exception, exited (with code 0, too), was killed or took too
            long. The message says how each rank ended, and contains its output.
        TypeError: The function cannot be imported by name.
    """
    with start_ranks(
        function,
        *arguments,
        world_size=world_size,
        environment=environment,
        directory=directory,
        fresh=fresh,
    ) as ranks:
        ends = ranks.wait(timeout)
    if not all(end.returned and end.exit_code == 0 for end in ends):
        raise RankError(ends)
    return [end.result for end in ends]

"""A process that has imported torch and Megatron, and forks the ranks of tests.

An interpreter takes eight seconds of CPU time to import what a training run needs; forking one that
has done so takes milliseconds. `shared()` is the server of this process: it starts on first use and
ends with this process, however that ends. Under pytest-xdist every worker has its own server.

A fork inherits some things from its parent that it cannot change:

- The server sees no CUDA device, and has installed the CPU emulation for Megatron.
- Modules are imported already. Tests of imports or of interpreter exit start a new interpreter.
- Memory is allocated according to `MOE_MEGATRON_PLAIN` at the start of the server; everything else
  that reads the environment does so in the rank.

A process with threads cannot be forked safely. So the server only imports: computing would start
OpenMP threads, and the server refuses to run if importing a module starts a thread. It does not
know what ranks do, or that they belong together.
"""

import atexit
import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from socket import socketpair
from threading import Lock
from typing import NoReturn

from moe_megatron.platform.collection import without_collection
from moe_megatron.testing.rank import Task, run, settle

PRELOADED = (
    # The first import of Megatron must be ours.
    "moe_megatron.mcore.loop.engine",
    "moe_megatron.training.trainer",
    "moe_megatron.cli.pretrain",
    # Test files import these, or what they do.
    "torch._dynamo",
    "transformers.models.auto",
    "transformers.modeling_utils",
    "pytest",
    "moe_megatron.testing.warm",
)
"""Modules that are already imported in every rank."""


class ForkServer:
    """The test's side of a server."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        """Start the server; it is ready after a few seconds, until which `fork` waits.

        Args:
            preloaded: Modules to import, in this order.
        """
        ours, its = socketpair()
        # Without a name, so that nothing is left of it, however this process ends.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        with its:
            code = f"from {__name__} import serve; serve({its.fileno()}, {tuple(preloaded)})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the tests only; the server ends with them
            )
        self._connection = Connection(ours.detach())
        self._lock = Lock()
        self._ended: dict[int, int] = {}
        self._owner = os.getpid()

    def fork(self, task: Task) -> int:
        """Start a rank in a process group of its own; returns its process id.

        Raises:
            RuntimeError: The server has ended; the message contains its output.
        """
        with self._lock, self._explained():
            self._connection.send(task)
            while True:
                kind, process, status = self._connection.recv()
                if kind == "forked":
                    self._ended.pop(process, None)  # of an earlier rank with the same id
                    return int(process)
                self._ended[process] = status

    def exit_code(self, process: int, *, seconds: float = 0.0) -> int | None:
        """Exit code of a rank, as in `subprocess`; None if it is still running after `seconds`."""
        with self._lock, self._explained():
            while process not in self._ended and self._connection.poll(seconds):
                _, ended, status = self._connection.recv()
                self._ended[ended] = status
            return self._ended.get(process)

    def close(self) -> None:
        """End the server, and every rank that is still running."""
        if os.getpid() == self._owner:
            self._connection.close()
            self._process.wait()
            self._log.close()

    @property
    def is_usable(self) -> bool:
        """Whether this process started the server and it is still running."""
        return self._owner == os.getpid() and self._process.poll() is None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.wait()
            self._log.seek(0)
            output = self._log.read().decode(errors="replace")
            raise RuntimeError(f"the fork server has ended:\n{output}") from error


_shared: ForkServer | None = None


def shared() -> ForkServer:
    """The server of this process."""
    global _shared
    if _shared is None or not _shared.is_usable:
        _shared = ForkServer()
        atexit.register(_shared.close)
    return _shared


# --- the server's side ---------------------------------------------------------------------------


def serve(descriptor: int, preloaded: Sequence[str]) -> None:
    """Fork a rank for each task received through a socket, until the other end is closed."""
    connection = Connection(descriptor)
    for module in preloaded:
        with without_collection():
            importlib.import_module(module)
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError(f"importing {module} starts threads, which a fork would not have")
    gc.collect()
    gc.freeze()  # keeps garbage collection in the ranks from copying shared pages
    ranks: dict[int, int] = {}  # process ids by pidfd, which is readable when the process has ended
    try:
        while True:
            for ready in wait([connection, *ranks]):
                if ready is connection:
                    process = _fork(connection, connection.recv(), list(ranks))
                    ranks[os.pidfd_open(process)] = process
                    connection.send(("forked", process, 0))
                elif isinstance(ready, int):
                    _report(connection, ready, ranks)
    except (EOFError, OSError):  # the test's process has ended
        for process in ranks.values():
            _kill_group(process)


def _fork(connection: Connection, task: Task, descriptors: list[int]) -> int:
    process = os.fork()
    # Called in both processes, because either may run first.
    os.setpgid(process, process)
    if process:
        return process
    _become(connection, task, descriptors)


def _become(connection: Connection, task: Task, descriptors: list[int]) -> NoReturn:
    connection.close()
    for descriptor in descriptors:
        os.close(descriptor)
    settle(task)
    run(task)


def _report(connection: Connection, descriptor: int, ranks: dict[int, int]) -> None:
    """Report how a rank ended, and kill the processes that it left behind."""
    process = ranks.pop(descriptor)
    os.close(descriptor)
    _kill_group(process)  # before waitpid: the id of an unreaped process cannot be reused
    _, status = os.waitpid(process, 0)
    connection.send(("ended", process, os.waitstatus_to_exitcode(status)))


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)

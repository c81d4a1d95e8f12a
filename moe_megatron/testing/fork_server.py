"""A process that has imported torch and Megatron, and forks the ranks of tests.

An interpreter takes eight seconds of a processor to import what a training run needs; a fork of one
that has done so takes milliseconds. `shared()` is the server of this process: it starts when first
asked, and ends with this process, however that ends. Under pytest-xdist every worker has its own.

What a fork cannot do differently from its parent:

- The server sees no CUDA device, and has Megatron's emulation for the CPU in place.
- Modules are imported. A test of imports, or of the end of an interpreter, starts one.
- Memory is allocated as `MOE_MEGATRON_PLAIN` said when the server started; all else that reads the
  environment does so in the rank.

A process with threads cannot be forked safely, so the server only imports: it computes nothing,
which would start OpenMP's threads, and refuses to serve when a module that it imports starts one.
It knows nothing about what ranks do, nor that they belong together.
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
from pathlib import Path
from socket import socketpair
from threading import Lock
from typing import NoReturn

from moe_megatron.testing.rank import Task, run, settle

PRELOADED = (
    # The first import of Megatron must be ours.
    "moe_megatron.mcore.loop.engine",
    "moe_megatron.training.trainer",
    "moe_megatron.cli.pretrain",
    # Imported by a run when it needs them.
    "torch._dynamo",
    "transformers.models.auto",
    "transformers.modeling_utils",
    # Imported by test files.
    "pytest",
    "moe_megatron.testing.warm",
)
"""Modules that ranks find imported."""


class ForkServer:
    """The test's side of a server."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        """Start it; it is ready some seconds later, and `fork` waits until then.

        Args:
            preloaded: Modules to import, in this order.
        """
        ours, its = socketpair()
        log, path = tempfile.mkstemp(prefix="fork_server", suffix=".log")
        self._log = Path(path)
        with its, open(log, "wb") as output:
            code = f"from {__name__} import serve; serve({its.fileno()}, {tuple(preloaded)})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests; the server goes when they do
            )
        self._connection = Connection(ours.detach())
        self._lock = Lock()
        self._ended: dict[int, int] = {}
        self._owner = os.getpid()

    def fork(self, task: Task) -> int:
        """Start a rank in a process group of its own; returns its process id.

        Raises:
            RuntimeError: The server has ended; holds its output.
        """
        with self._lock, self._explained():
            self._connection.send(task)
            while True:
                kind, process, status = self._connection.recv()
                if kind == "forked":
                    return int(process)
                self._ended[process] = status

    def exit_code(self, process: int, *, seconds: float = 0.0) -> int | None:
        """How a rank ended, as `subprocess` says it; None if it still runs after some seconds."""
        with self._lock, self._explained():
            while process not in self._ended and self._connection.poll(seconds):
                _, ended, status = self._connection.recv()
                self._ended[ended] = status
            return self._ended.get(process)

    def close(self) -> None:
        """End the server, and every rank that still runs."""
        if os.getpid() == self._owner:
            self._connection.close()
            self._process.wait()
            self._log.unlink(missing_ok=True)

    @property
    def is_usable(self) -> bool:
        """Whether it was started by this process and still runs."""
        return self._owner == os.getpid() and self._process.poll() is None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.wait()
            said = self._log.read_text()
            raise RuntimeError(f"the fork server has ended:\n{said}") from error


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
    """Fork ranks as the other end of a socket asks, until it is closed."""
    connection = Connection(descriptor)
    for module in preloaded:
        importlib.import_module(module)
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError(f"importing {module} starts threads, which a fork would not have")
    gc.collect()
    gc.freeze()  # no rank shall copy memory only because it looks for garbage
    ranks: dict[int, int] = {}  # a descriptor that is readable when the process has ended
    try:
        while True:
            for ready in wait([connection, *ranks]):
                if ready is connection:
                    process = _fork(connection, connection.recv(), list(ranks))
                    ranks[os.pidfd_open(process)] = process
                    connection.send(("forked", process, 0))
                elif isinstance(ready, int):
                    _report(connection, ready, ranks)
    except (EOFError, OSError):  # the test's process has gone
        for process in ranks.values():
            _kill_group(process)


def _fork(connection: Connection, task: Task, descriptors: list[int]) -> int:
    process = os.fork()
    # Here and there, because nobody knows who comes first.
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
    """Say how a rank ended, and end what it left behind."""
    process = ranks.pop(descriptor)
    os.close(descriptor)
    _kill_group(process)  # first: nobody can have the number of a process that is not reaped
    _, status = os.waitpid(process, 0)
    connection.send(("ended", process, os.waitstatus_to_exitcode(status)))


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)

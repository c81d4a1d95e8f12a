"""Serves a dashboard by several processes on one socket, and keeps that many of them running.

Each worker ends with its standard input, which this process holds: so none outlives it, however it
ends. It does not know what a worker serves.
"""

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from moe_megatron.errors import ConfigError
from moe_megatron.http_server.listening import url_of
from moe_megatron.webapp.inspector.inspector import Inspector
from moe_megatron.webapp.listening import listen_for_dashboard
from moe_megatron.webapp.serving import DashboardOptions, those_known
from moe_megatron.webapp.sharing.address import RedisAddress
from moe_megatron.webapp.workers.shared_inspector import InspectorServer

MOST_WORKERS = 64
_LOOKS_AGAIN_SECONDS = 0.2
_ENDING_SECONDS = 10.0
_LONG_SECONDS, _MOST_PAUSE_SECONDS = 10.0, 30.0
"""A worker that ends sooner than the first is started again after a pause that doubles."""
_COMMAND = __name__.partition(".")[0]

logger = logging.getLogger(__name__)


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes] | None" = None
    began: float = 0.0
    pause: float = field(default=0.5)
    next: float = 0.0
    """When the next one may be started."""


class Supervisor:
    """The workers of a dashboard, which serve when they are told to.

    Args:
        options: What is shown, and where.
        words: What follows `moe-megatron dashboard` on the command line; each worker gets it, too.
        workers: How many there are.

    Raises:
        ConfigError: As of `DashboardServer`, or the number is none.
        BackendUnavailableError: The database or Redis does not answer.
    """

    def __init__(self, options: DashboardOptions, words: Sequence[str], workers: int) -> None:
        if not 1 <= workers <= MOST_WORKERS:
            raise ConfigError(f"--workers must be 1 to {MOST_WORKERS}, not {workers}.")
        if options.database is not None:
            those_known(options.database).close()
        if options.redis is not None:
            RedisAddress.parse(options.redis).check()
        for_all = options.database is None
        self._socket: socket.socket = listen_for_dashboard(
            options.host, options.port, for_all=for_all
        )
        self.url = url_of(options.host, self._socket)
        """Where a browser finds it."""
        self._words, self._ended = list(words), threading.Event()
        self._workers = [_Worker() for _ in range(workers)]
        self._inspector = InspectorServer(Inspector())

    def serve(self) -> None:
        """Serve until SIGINT, SIGTERM or `end`."""
        before = {it: signal.signal(it, self._stop) for it in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self._ended.is_set():
                for number, worker in enumerate(self._workers, start=1):
                    self._look_after(number, worker)
                self._ended.wait(_LOOKS_AGAIN_SECONDS)
        finally:
            self._end_all()
            for which, handler in before.items():
                signal.signal(which, handler)

    def end(self) -> None:
        """Ask whoever serves to stop; from any thread."""
        self._ended.set()

    def _stop(self, which: int, frame: FrameType | None) -> None:
        self.end()

    def _look_after(self, number: int, worker: _Worker) -> None:
        now = time.monotonic()
        if worker.process is not None and (code := worker.process.poll()) is not None:
            _close_input(worker.process)
            worker.process = None
            lasted = now - worker.began
            worker.pause = 0.0 if lasted > _LONG_SECONDS else min(
                _MOST_PAUSE_SECONDS, max(1.0, 2 * worker.pause)
            )  # fmt: skip
            worker.next = now + worker.pause
            logger.warning("worker %d ended with code %d; another one is started", number, code)
        if worker.process is None and now >= worker.next:
            worker.process, worker.began = self._start(), now

    def _start(self) -> "subprocess.Popen[bytes]":
        given = f"{self._socket.fileno()}:{self._inspector.path}"
        return subprocess.Popen(
            [sys.executable, "-m", _COMMAND, "dashboard", *self._words, "--worker", given],
            stdin=subprocess.PIPE,
            pass_fds=[self._socket.fileno()],
            start_new_session=True,  # Ctrl-C is meant for this process, which ends it
        )

    def _end_all(self) -> None:
        running = [it.process for it in self._workers if it.process is not None]
        for process in running:
            _close_input(process)
        deadline = time.monotonic() + _ENDING_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._inspector.close()
        self._socket.close()


def _close_input(process: "subprocess.Popen[bytes]") -> None:
    """Let it know that it shall end."""
    assert process.stdin is not None
    process.stdin.close()

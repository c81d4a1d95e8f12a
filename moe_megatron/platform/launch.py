"""Starts the processes of a run on this machine through torchrun, and stops them gracefully.

On Ctrl-C, torchrun itself kills its workers after 30 seconds and ends with a traceback. Here a
signal is passed on to the workers, which save a checkpoint and exit by themselves; a second Ctrl-C
kills them at once. This module does not know what the workers do.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from moe_megatron.errors import INTERRUPTED
from moe_megatron.platform.death import Death, in_order
from moe_megatron.platform.death_clock import DeathClock, children
from moe_megatron.platform.memory_kills import count_memory_kills

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end that a batch system orders; and its announcement that time is nearly up."""
_GRACE_SECONDS = 10
"""How long workers may go on after one has died; they have lost their connection to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How the workers ended."""

    code: int
    """0, or the exit code of the worker that failed first, or 128 and the number of its signal; 130
    if a signal to us ended the workers before they could save, or a second one killed them."""
    deaths: tuple[Death, ...] = ()
    """The workers that failed, the one that caused the others first."""
    stopped: bool = False
    """Whether we were asked to stop."""
    memory_kills: int | None = None
    """Processes that the kernel killed for want of memory meanwhile; None if that is unknown."""


def torchrun_command(num_processes: int, target: Sequence[str]) -> list[str]:
    """The arguments of torchrun for one machine; each call chooses a port of its own.

    Args:
        num_processes: Number of processes to start.
        target: A script, or "-m" and a module, followed by its arguments.
    """
    return [
        *("--nproc-per-node", str(num_processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(_free_port())),
        *target,
    ]


def run_torchrun(
    command: Sequence[str],
    scratch: Path,
    *,
    debug: bool = False,
    on_stop: Callable[[signal.Signals], None] = lambda signum: None,
) -> End:
    """Run torchrun in this process until its workers have ended.

    Args:
        command: From `torchrun_command`.
        scratch: A folder for torchrun's own files, new for each call.
        debug: Let torchrun log.
        on_stop: Called once, when the workers have been asked to stop.

    Raises:
        KeyboardInterrupt: A signal came before workers were started.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", _threads_per_process(command))
    if not debug:
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # torchrun must not handle SIGINT and SIGTERM itself, but insists on handling some signal.
    own = ["--signals-to-handle", "SIGQUIT", "--shutdown-timeout", str(_GRACE_SECONDS)]
    arguments = torchrun.parse_args(  # type: ignore[no-untyped-call]
        [*own, "--log-dir", str(scratch), *command]
    )
    kills = count_memory_kills()
    with DeathClock() as clock, _stops_passed_on(on_stop) as stops:
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            found = [
                Death(rank=rank, exit_code=it.exitcode, time=clock.times.get(it.pid, time.time()))
                for rank, it in error.failures.items()
            ]
            deaths = in_order(found, scratch.rglob("error.json"))
            return _end_of(deaths, stopped=bool(stops), kills=_since(kills))
    return End(code=0, stopped=bool(stops))


def _end_of(deaths: Sequence[Death], *, stopped: bool, kills: int | None) -> End:
    code = deaths[0].exit_code
    if stopped and code == -signal.SIGTERM:
        print("interrupted before the first step: nothing was saved", file=sys.stderr)
    if stopped and code in (-signal.SIGTERM, -signal.SIGKILL):
        return End(code=INTERRUPTED, stopped=True)
    return End(
        code=code if code > 0 else 128 - code,
        deaths=tuple(deaths),
        stopped=stopped,
        memory_kills=kills,
    )


def _since(before: int | None) -> int | None:
    now = count_memory_kills()
    return None if before is None or now is None else now - before


def _threads_per_process(command: Sequence[str]) -> str:
    num_processes = int(command[command.index("--nproc-per-node") + 1])
    return str(max(1, len(os.sched_getaffinity(0)) // num_processes))


@contextlib.contextmanager
def _stops_passed_on(
    on_stop: Callable[[signal.Signals], None] = lambda signum: None,
) -> Iterator[list[int]]:
    """Pass stop signals on to the workers; yields the list of those received so far."""
    stops: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        workers, first = children(os.getpid()), not stops
        if not workers:
            raise KeyboardInterrupt
        stops.append(signum)
        # A batch system that has announced the end may order it before the workers have saved.
        kill = not first and signum == signal.SIGINT
        if first or kill:
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping now\n" if kill else b"\nstopping after this step ...\n")
        for worker in workers if first or kill else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL if kill else signal.SIGTERM)
        if first:
            on_stop(signal.Signals(signum))

    previous = {signum: signal.signal(signum, stop) for signum in _STOP_SIGNALS}
    try:
        yield stops
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])

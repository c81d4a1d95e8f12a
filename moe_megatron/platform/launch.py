"""Starts the processes of a run on this machine through torchrun, and stops them gracefully.

On Ctrl-C, torchrun itself kills its workers after 30 seconds and ends with a traceback. Here a
signal is passed on to the workers, which save a checkpoint and exit by themselves; a second Ctrl-C,
or a second SIGTERM some seconds later, kills them at once. This module does not know what the
workers do.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from moe_megatron.errors import INTERRUPTED
from moe_megatron.platform.bytecode import keep_bytecode
from moe_megatron.platform.death import Death, in_order
from moe_megatron.platform.death_clock import DeathClock, children
from moe_megatron.platform.memory_kills import count_memory_kills
from moe_megatron.platform.scratch import environment

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end that a batch system orders; and its announcement that time is nearly up."""
MEETING_PLACES = 2
"""Ports after the master's where ranks that are restarted in their processes meet again."""
_AFTER_THIS_STEP = b"\nstopping after this step ... (a second Ctrl-C stops now)\n"
_NOW = b"\nstopping now\n"
_TWICE_SECONDS = 2.0
"""Two SIGTERM within this time are one: `timeout` sends it to a process and to its group."""
OnStop = Callable[[signal.Signals], None]
GRACE_SECONDS = 10
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
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port(MEETING_PLACES))),
        *target,
    ]


def run_torchrun(
    command: Sequence[str],
    scratch: Path,
    *,
    debug: bool = False,
    on_stop: OnStop = lambda signum: None,
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

    if not debug:
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # torchrun must not handle SIGINT and SIGTERM itself, but insists on handling some signal.
    own = ["--signals-to-handle", "SIGQUIT", "--shutdown-timeout", str(GRACE_SECONDS)]
    arguments = torchrun.parse_args(  # type: ignore[no-untyped-call]
        [*own, "--log-dir", str(scratch), *command]
    )
    before = children(os.getpid())  # a notebook may have some
    with running(command, scratch, on_stop, lambda: before) as end_of:
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            return end_of(error.failures)
        return end_of({})


@contextlib.contextmanager
def running(
    command: Sequence[str],
    scratch: Path,
    on_stop: OnStop,
    others: Callable[[], Collection[int]] = tuple,
) -> Iterator[Callable[[Mapping[int, Any]], End]]:
    """Look after the workers that a launcher of torch's kind has in this process.

    Args:
        command: The launcher's arguments.
        scratch: Folder of the launcher's own files.
        on_stop: Called once, when the workers have been asked to stop.
        others: Gives the process ids of children that are not workers.

    Yields:
        A function that tells how they ended, from torch's failures by rank.
    """
    keep_bytecode()
    kills = count_memory_kills()
    threads = os.environ.get("OMP_NUM_THREADS") or _threads_per_process(command)
    with (
        environment({"OMP_NUM_THREADS": threads}),
        DeathClock() as clock,
        _stops_passed_on(on_stop, others) as stops,
    ):

        def end_of(failures: Mapping[int, Any]) -> End:
            if not failures:
                return End(code=0, stopped=bool(stops))
            found = [
                Death(rank=rank, exit_code=it.exitcode, time=clock.times.get(it.pid, time.time()))
                for rank, it in failures.items()
            ]
            deaths = in_order(found, scratch.rglob("error.json"))
            return _end_of(deaths, stopped=bool(stops), kills=_since(kills))

        yield end_of


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
    on_stop: OnStop = lambda signum: None, others: Callable[[], Collection[int]] = tuple
) -> Iterator[list[int]]:
    """Pass stop signals on to the workers; yields the list of those received so far."""
    stops: list[int] = []
    asked = time.monotonic()

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        workers, first = set(children(os.getpid())) - set(others()), not stops
        if not workers:
            raise KeyboardInterrupt
        stops.append(signum)
        asked = time.monotonic() if first else asked
        insists = signum == signal.SIGINT or _orders_again(stops, time.monotonic() - asked)
        kill = insists and not first
        if first or kill:
            with contextlib.suppress(OSError):
                os.write(2, _NOW if kill else _AFTER_THIS_STEP)
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


def _orders_again(stops: Sequence[int], seconds: float) -> bool:
    """Whether somebody orders again, some seconds later, what was ordered.

    A batch system may announce the end and order it before the workers have saved; and it sends the
    order to every process of a job, whose parents pass it on.
    """
    again = stops[0] == stops[-1] == signal.SIGTERM and "SLURM_JOB_ID" not in os.environ
    return again and seconds > _TWICE_SECONDS


def free_port(neighbours: int = 0) -> int:
    """A port of the loopback address that is free now, and so are as many after it."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            for number in range(port + 1, port + 1 + neighbours):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port

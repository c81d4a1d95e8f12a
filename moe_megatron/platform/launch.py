"""Starts the processes of a run on this machine through torchrun, and stops them gracefully.

On Ctrl-C, torchrun itself kills its workers after 30 seconds and ends with a traceback. Here an
interrupt is passed on to the workers, which save a checkpoint and exit by themselves; a second one
kills them at once. This module does not know what the workers do.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130


def torchrun_command(num_processes: int, target: Sequence[str]) -> list[str]:
    """The arguments of torchrun for one machine.

    Args:
        num_processes: Number of processes to start.
        target: A script, or "-m" and a module, followed by its arguments.
    """
    return [
        *("--nproc-per-node", str(num_processes)),
        *("--master-addr", "127.0.0.1", "--master-port", str(_free_port())),
        *target,
    ]


def run_torchrun(command: Sequence[str], *, debug: bool = False) -> int:
    """Run torchrun in this process until its workers have ended.

    Args:
        command: From `torchrun_command`.
        debug: Let torchrun log.

    Returns:
        0, or the exit code of the first worker that failed; 130 if an interrupt ended the workers
        before they could save, or a second one killed them.

    Raises:
        KeyboardInterrupt: An interrupt came before workers were started.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", _threads_per_process(command))
    if not debug:
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # torchrun must not handle SIGINT and SIGTERM itself, but insists on handling some signal.
    arguments = torchrun.parse_args(  # type: ignore[no-untyped-call]
        ["--signals-to-handle", "SIGQUIT", *command]
    )
    with _stops_passed_on() as stops:
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            if stops and code == -signal.SIGTERM:
                print("interrupted before the first step: nothing was saved", file=sys.stderr)
            if stops and code in (-signal.SIGTERM, -signal.SIGKILL):
                return _INTERRUPTED
            return code if code > 0 else 128 - code
    return 0


def _threads_per_process(command: Sequence[str]) -> str:
    num_processes = int(command[command.index("--nproc-per-node") + 1])
    return str(max(1, len(os.sched_getaffinity(0)) // num_processes))


@contextlib.contextmanager
def _stops_passed_on() -> Iterator[list[int]]:
    """Pass stop signals on to the workers; yields the list of those received so far."""
    stops: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        workers, first = _children(os.getpid()), not stops
        if not workers:
            raise KeyboardInterrupt
        stops.append(signum)
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step ...\n" if first else b"\nstopping now\n")
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM if first else signal.SIGKILL)

    previous = {signum: signal.signal(signum, stop) for signum in _STOP_SIGNALS}
    try:
        yield stops
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += map(int, (task / "children").read_text().split())
    return children


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])

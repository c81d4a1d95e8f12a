"""Starts the processes of a run on this machine through ft_launcher of nvidia-resiliency-ext.

ft_launcher is torchrun with a monitor process for each rank: a rank says in which section it is
(set-up, step, checkpoint), and one that is in a section for too long is killed. Here it runs inside
this process, makes one attempt, and tells how that ended exactly as torchrun does; when to start
again is up to the caller. It does not know what the sections are.
"""

import contextlib
import logging
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.platform.launch import GRACE_SECONDS, End, OnStop, free_port, running
from moe_megatron.platform.parent import end_with_parent
from moe_megatron.platform.resiliency import messages_to
from moe_megatron.platform.scratch import environment

_OWN_SIGNAL = "SIGQUIT"
_CHECK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long a rank may be in a section, in seconds; infinite for as long as it likes."""

    sections: Mapping[str, float]
    outside: float
    """How long it may be in none."""


def ft_launcher_command(num_processes: int, target: Sequence[str], timeouts: Timeouts) -> list[str]:
    """The arguments of ft_launcher for one machine; each call chooses a port of its own.

    Args:
        num_processes: Number of processes to start.
        target: A script, or "-m" and a module, followed by its arguments.
        timeouts: When a rank hangs.
    """
    sections = ",".join(f"{name}:{_seconds(it)}" for name, it in timeouts.sections.items())
    return [
        *("--nnodes", "1", "--nproc-per-node", str(num_processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"),
        *("--max-restarts", "0", "--workers-stop-timeout", str(GRACE_SECONDS)),
        *("--monitor-interval", "0.1", "--ft-workload-check-interval", str(_CHECK_SECONDS)),
        *("--ft-rank-section-timeouts", sections),
        *("--ft-rank-out-of-section-timeout", _seconds(timeouts.outside)),
        *target,
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:g}" if math.isfinite(seconds) else "none"


def run_ft_launcher(
    command: Sequence[str], scratch: Path, log: Path, *, on_stop: OnStop = lambda signum: None
) -> End:
    """Run ft_launcher in this process until its workers have ended.

    Args:
        command: From `ft_launcher_command`.
        scratch: A folder for the launcher's own files, new for each call.
        log: File for what the launcher and its monitors say.
        on_stop: Called once, when the workers have been asked to stop.

    Raises:
        KeyboardInterrupt: A signal came before workers were started.
    """
    from nvidia_resiliency_ext.fault_tolerance import launcher

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    arguments = launcher.parse_args(["--log-dir", str(scratch), *command])
    failures: dict[int, Any] = {}
    with (
        environment({"TORCHELASTIC_SIGNALS_TO_HANDLE": _OWN_SIGNAL}),
        _saying_to(log),
        _failures_kept(launcher.LocalElasticAgent, failures),
        running(command, scratch, on_stop, _monitors) as end_of,
    ):
        try:
            launcher.run(arguments)
        except Exception:
            # After a failure of workers it insists on an account of them that it does not have.
            if not failures:
                raise
        return end_of(failures)


def _monitors() -> set[int]:
    """The process ids of the monitors, which are forked, other than workers."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@contextlib.contextmanager
def _failures_kept(agent: Any, failures: dict[int, Any]) -> Iterator[None]:
    """Keep which workers failed; ft_launcher forgets it when it makes no further attempt."""
    original = agent._monitor_workers

    def monitor_workers(self: Any, group: Any) -> Any:
        result = original(self, group)
        for rank, failure in result.failures.items():
            failures.setdefault(rank, failure)
        return result

    agent._monitor_workers = monitor_workers
    try:
        yield
    finally:
        agent._monitor_workers = original


_monitor_log: Path | None = None


@contextlib.contextmanager
def _saying_to(log: Path) -> Iterator[None]:
    """Send what launcher and monitors say to a file, and let monitors end with this process."""
    global _monitor_log
    _hook_forks()
    with messages_to(log):
        _monitor_log = log
        try:
            yield
        finally:
            _monitor_log = None


_hooked = False
_forker = 0
"""The process that forks."""


def _hook_forks() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(before=_before_fork, after_in_child=_in_monitor)


def _before_fork() -> None:
    global _forker
    _forker = os.getpid()


def _in_monitor() -> None:
    if _monitor_log is None:
        return
    end_with_parent(_forker)
    with contextlib.suppress(OSError):
        log = os.open(_monitor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

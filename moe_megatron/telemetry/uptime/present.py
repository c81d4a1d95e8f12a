"""A run at this moment, as far as this machine can tell: whether it works, where its time went.

It looks for the process that an attempt names, and at when files were written. It does not know
what follows from that.
"""

import socket
from pathlib import Path

import psutil

from moe_megatron.telemetry.uptime.account import Account, account
from moe_megatron.telemetry.uptime.attempts import Attempt, Attempts
from moe_megatron.telemetry.uptime.steps import StepTimes

_SILENT_SECONDS = 600.0
"""A run on another machine counts as running for so long after its last sign of life, at least."""


def account_at(
    attempts: Attempts, steps: StepTimes, recorded_at: float | None, now: float, *, running: bool
) -> Account | None:
    """Where the time of a run went until now, or until it ended; None without an attempt.

    Args:
        attempts: From its journal.
        steps: From its metrics.jsonl.
        recorded_at: When that was written last, in seconds since 1970; None without one.
        now: The present.
        running: Whether the last attempt is at work.
    """
    if not attempts.list:
        return None
    last = attempts.list[-1]
    sign = max(last.last_sign, recorded_at or 0.0)
    # Ranks that no launcher watches say themselves that they are done, and nobody after them.
    until = now if running else max(last.ended_at or 0.0, last.died_at or 0.0) or sign
    return account(attempts, steps, until, runs=running, recorded_at=recorded_at or sign)


def modified(path: Path) -> float | None:
    """When a file was written last, in seconds since 1970; None without one."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def at_work(last: Attempt, sign: float, now: float, step_seconds: float = 0.0) -> bool:
    """Whether the last attempt of a run is at work, as far as this machine can tell.

    Args:
        last: An attempt whose end is not known.
        sign: Its last sign of life, in seconds since 1970.
        now: The present.
        step_seconds: What its steps take; a run elsewhere may be silent for ten of them.
    """
    if last.pid is not None and last.host == socket.gethostname():
        try:
            process = psutil.Process(last.pid)
            # Another process may have the number by now.
            ours = process.create_time() <= (last.process_started or last.started) + 1
            return ours and process.status() != psutil.STATUS_ZOMBIE and last.trained is None
        except psutil.NoSuchProcess:
            return False
    return last.trained is None and now - sign < max(_SILENT_SECONDS, 10 * step_seconds)

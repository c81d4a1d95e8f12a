"""Ends this rank, and what it has forked, when the launcher that started it is gone.

A launcher that is killed cannot stop its ranks, and ranks that go on would write the folder of a
run that is started again. The kernel kills a rank as soon as its parent ends. It does so only for
the parent, and forgets it when a program with other rights is executed, so a thread looks after the
launcher, too. Nothing is saved: the folder may belong to another job by then.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from moe_megatron.platform.processes import Process

LAUNCHER_VARIABLE = "MOE_MEGATRON_LAUNCHER"
"""Environment variable with the process of our launcher; others are recognized by torchrun's."""

_PR_SET_PDEATHSIG = 1
_SECONDS = 0.5

_armed = False
_follow = True
_forker: int | None = None
"""The process that forks, if its main thread does."""


def end_with_launcher() -> None:
    """From now on, end when the launcher does; without a launcher, do nothing."""
    global _armed
    launcher = _launcher()
    if launcher is None or _armed:
        return
    _armed = True
    end_with_parent(os.getppid())
    if not launcher.is_alive:  # it ended before the kernel was asked
        _end()
    threading.Thread(target=_watch, args=[launcher], name="launcher-watch", daemon=True).start()
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _launcher() -> Process | None:
    ours = Process.read(os.environ.get(LAUNCHER_VARIABLE, ""))
    if ours is not None:
        return ours if ours.pid != os.getpid() else None
    return Process.of(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else None


def _watch(launcher: Process) -> None:
    while launcher.is_alive:
        time.sleep(_SECONDS)
    _end()


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def end_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, and not before.

    Args:
        parent: Its process id. If it has ended by now, this process ends at once.
    """
    # Where there is no prctl, as in some sandboxes, the thread is enough.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _end()


@contextmanager
def forks_outlive_us() -> Iterator[None]:
    """Processes that are forked meanwhile look after themselves, as a monitor of this one must."""
    global _follow
    before, _follow = _follow, False
    try:
        yield
    finally:
        _follow = before


def _before_fork() -> None:
    # The kernel takes the end of the thread that forked for the end of the parent.
    global _forker
    _forker = os.getpid() if threading.current_thread() is threading.main_thread() else None


def _after_fork() -> None:
    """In a process that the rank has forked, such as the one that writes checkpoints."""
    if _forker is not None and _follow:
        end_with_parent(_forker)

"""When children end, told by the kernel and not by looking again and again."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from moe_megatron.platform import death_clock
from moe_megatron.platform.death_clock import DeathClock

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def wait_for(clock: DeathClock, pid: int) -> float:
    deadline = time.monotonic() + 20
    while pid not in clock.times:
        assert time.monotonic() < deadline, "the clock has not noticed"
        time.sleep(0.005)
    return clock.times[pid]


def kernel_objects() -> int:
    """Open descriptors of processes and events."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}") in (
                "anon_inode:[pidfd]",
                "anon_inode:[eventfd]",
                f"pidfd:[{name}]",
            )
    return found


def test_deaths_are_noted_in_their_order() -> None:
    with DeathClock() as clock:
        running = [subprocess.Popen(SLEEPER) for _ in range(3)]
        before = time.time()
        times = []
        for process in reversed(running):
            process.send_signal(signal.SIGKILL)
            times.append(wait_for(clock, process.pid))
    for process in running:
        process.wait()
    assert times == sorted(times)
    assert all(before <= moment <= time.time() for moment in times)


def test_child_that_lives_has_no_time_and_no_descriptor_is_left() -> None:
    process = subprocess.Popen(SLEEPER)
    before = kernel_objects()
    with DeathClock() as clock:
        deadline = time.monotonic() + 20
        while not clock._watched and time.monotonic() < deadline:
            time.sleep(0.005)
        assert clock._watched
    assert clock.times == {}
    assert kernel_objects() == before
    process.kill()
    process.wait()


def test_child_that_is_found_late_is_noted_at_once_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(death_clock, "_LOOKS", 0)  # it only rests
    with DeathClock() as clock:
        process = subprocess.Popen(SLEEPER)
        deadline = time.monotonic() + 20
        while process.pid not in clock._watched.values():
            assert time.monotonic() < deadline, "the clock has not found it"
            time.sleep(0.01)
        monkeypatch.setattr(death_clock, "_REST_SECONDS", 3600.0)
        time.sleep(1.1)  # from now on only the kernel wakes it
        process.kill()
        wait_for(clock, process.pid)
        process.wait()


def test_kernel_that_tells_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with DeathClock() as clock:
        process = subprocess.Popen(SLEEPER)
        while process.pid not in clock._looked_at:
            time.sleep(0.005)
        assert clock.times == {}
        process.kill()
        wait_for(clock, process.pid)
        process.wait()

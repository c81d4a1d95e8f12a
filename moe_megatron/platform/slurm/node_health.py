"""Examines a node before ranks start on it: memory, disks, clock, network, and a check of the site.

What a node lacks after the start costs the whole job; what it lacks before costs that node.
Standard library only, and nothing is changed but a file of a few megabytes that is written and
removed. GPUs are the business of `gpu_health`.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.platform.slurm.finding import Finding, judged

_GIB = 1 << 30
_PROBE_BYTES = 8 << 20
_SITE_SECONDS = 300.0
_INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a job needs of a node."""

    disks: tuple[Path, ...] = ()
    """Folders that must be writable."""
    free_gib: float = 1.0
    """Free space of each."""
    memory_gib: float = 1.0
    """Memory that is available."""
    clock: float | None = None
    """The time on the node of the batch script when it asked, in seconds since 1970."""
    clock_seconds: float = 60.0
    """Largest difference of the clocks, the time srun takes to start included."""
    site_check: str | None = None
    """A program of the site; its exit code 0 means that the node is well."""


def examine(needs: Needs) -> Iterator[Finding]:
    """Look at this node; yields what it found."""
    yield _memory(needs.memory_gib)
    for folder in needs.disks:
        yield _disk(folder, needs.free_gib)
    if needs.clock is not None:
        yield _clock(time.time() - needs.clock, needs.clock_seconds)
    yield _infiniband(_INFINIBAND)
    if needs.site_check:
        yield _site(needs.site_check)


def _memory(wanted: float, meminfo: Path = Path("/proc/meminfo")) -> Finding:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / (1 << 20)
    return judged(free >= wanted, "memory", f"{free:.0f} GiB available, {wanted:g} needed")


def _disk(folder: Path, wanted: float) -> Finding:
    """Free space, and whether a file can be written there, at which speed."""
    what = f"disk {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / _GIB
        if free < wanted:
            return Finding("FAIL", what, f"{free:.1f} GiB free, {wanted:g} needed")
        started = time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-node-") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        speed = _PROBE_BYTES / 1e6 / (time.perf_counter() - started)
    except OSError as error:
        return Finding("FAIL", what, f"cannot be written: {error.strerror}")
    return Finding("ok", what, f"{free:.0f} GiB free, written with {speed:.0f} MB/s")


def _clock(ahead: float, most: float) -> Finding:
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} the batch script's"
    return judged(abs(ahead) <= most, "clock", f"{found}, {most:g} allowed")


def _infiniband(adapters: Path) -> Finding:
    """The state of the ports that have a cable."""
    ports = sorted(adapters.glob("*/ports/*"))
    if not ports:
        return Finding("skip", "InfiniBand", "no adapter")
    states = {f"{port.parents[1].name}/{port.name}": _text(port / "state") for port in ports}
    # "4: ACTIVE"; a port without a cable says "1: DOWN" and has the physical state "3: Disabled" or
    # "2: Polling", and sites leave ports unused. One that trains or has lost its subnet is broken.
    bad = {name: state for name, state in states.items() if state.startswith(("2", "3"))}
    active = sum(state.startswith("4") for state in states.values())
    if bad or not active:
        shown = ", ".join(f"{name} {state}" for name, state in (bad or states).items())
        return Finding("FAIL", "InfiniBand", f"{active} ports active; {shown}")
    rates = sorted({_text(port / "rate") for port in ports if _text(port / "state")[:1] == "4"})
    return Finding("ok", "InfiniBand", f"{active} ports active, {', '.join(rates)}")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unreadable"


def _site(program: str) -> Finding:
    what = f"site check {program}"
    try:
        answer = subprocess.run(
            [program], capture_output=True, text=True, timeout=_SITE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("FAIL", what, str(error))
    said = " ".join((answer.stdout + answer.stderr).split())[-200:]
    return judged(answer.returncode == 0, what, f"exit code {answer.returncode} {said}".strip())

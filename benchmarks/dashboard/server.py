"""A dashboard in a process of its own, and what it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from moe_megatron.live.dashboard_process import DashboardProcess


@dataclass(frozen=True, slots=True)
class Server:
    """A running dashboard of one run."""

    url: str
    run_id: str
    process: psutil.Process

    @property
    def processor_seconds(self) -> float:
        """What it has computed so far, in all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def peak_bytes(self) -> int:
        """The most memory that it had at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        line = next(it for it in status.splitlines() if it.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@contextmanager
def dashboard(run_dir: Path, run_id: str) -> Iterator[Server]:
    """A dashboard that shows a run."""
    with DashboardProcess([run_dir]) as started:
        children = psutil.Process().children()
        process = next(it for it in children if "dashboard" in it.cmdline())
        yield Server(started.url, run_id, process)

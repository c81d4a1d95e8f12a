"""A run that makes ten steps a second of 61 layers x 256 experts, and a page that follows it.

The steps are made up and written by the sinks of a training; what is measured is the way from the
files through the server to the canvas.
"""

import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import machine, made_up
from benchmarks.dashboard.seen_page import Seen, SeenPage
from benchmarks.dashboard.server import dashboard
from moe_megatron.telemetry.history import HISTORY_FOLDER, HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.webapp.run_facts import run_id

HZ = 10.0


class _Feeder(threading.Thread):
    """Writes a step every tenth of a second, whatever the one before took."""

    def __init__(self, run_dir: Path, layers: int, experts: int) -> None:
        super().__init__(daemon=True)
        self.written = 0
        self.over = threading.Event()
        self._info = made_up.run(layers, experts, 16, run_dir)
        self._sinks = (MetricsLog(), RoutingLog(), HistorySink(run_dir / HISTORY_FOLDER))

    def run(self) -> None:
        """Write until it is over."""
        rng = np.random.default_rng(0)
        for sink in self._sinks:
            sink.start(self._info)
        began = time.monotonic()
        while not self.over.is_set():
            record, routing = made_up.step(self._info, self.written + 1, rng)
            for sink in self._sinks:
                sink.step(record, routing)
            self.written += 1
            time.sleep(max(0.0, began + self.written / HZ - time.monotonic()))
        for sink in self._sinks:
            sink.close()


def section(page: SeenPage, work: Path, layers: int, experts: int, seconds: float) -> str:
    """Measure, and say it as a table.

    Args:
        page: An open browser.
        work: An empty folder.
        layers: MoE layers of the run.
        experts: Experts of each.
        seconds: How long it is followed.
    """
    run_dir = work / "live"
    run_dir.mkdir(parents=True)
    feeder = _Feeder(run_dir, layers, experts)
    feeder.start()
    while feeder.written < HZ:
        time.sleep(0.1)
    with dashboard(run_dir, run_id(run_dir)) as server:
        page.go(f"{server.url}#run={server.run_id}")
        before, written, used = page.look(), feeder.written, server.processor_seconds
        began = time.monotonic()
        page.page.wait_for_timeout(1e3 * seconds)
        seen, written = page.look().since(before), feeder.written - written
        used, took = server.processor_seconds - used, time.monotonic() - began
        page.page.goto("about:blank")
        peak = server.peak_bytes
    feeder.over.set()
    feeder.join()
    return _table(seen, written, used, took, peak, f"{layers} x {experts} at {HZ:g} Hz")


def _table(seen: Seen, written: int, used: float, took: float, peak: int, title: str) -> str:
    each = 1e3 * seen.main_thread / max(1, seen.drawn)
    rows = [
        ["steps written", f"{written:,}"],
        ["frames received by the page", f"{seen.received:,}"],
        ["dropped on the way", f"{max(0, written - seen.received):,}"],
        ["drawn, each other than the one before", f"{seen.drawn:,}"],
        ["main thread for a frame that was drawn, all its work, processor time", f"{each:.1f} ms"],
        ["main thread, of a processor", f"{100 * seen.main_thread / took:.0f} %"],
        ["tasks of over 50 ms, the longest", f"{seen.long_tasks}, {1e3 * seen.longest:.0f} ms"],
        ["server, of a processor", f"{100 * used / took:.1f} %"],
        ["server, most memory", f"{peak / 1e6:.0f} MB"],
    ]
    return machine.table([f"live, {title}, {took:.0f} s", ""], rows)

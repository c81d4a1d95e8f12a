"""Two hours of telemetry in minutes: every sink, 61 layers of 256 experts, and a scraper.

Steps of a made-up run arrive without the training between them; 7,200 of them are two hours of
steps of one second. Memory is sampled all along, and must be flat. Run it from the repository root:
`python -m benchmarks.soak`.
"""

import argparse
import shutil
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import machine, made_up
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

_Step = tuple[StepRecord, RoutingSnapshot]
_SCRAPE_EVERY = 15
_SAMPLES = 12
_DIFFERENT_STEPS = 50


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7200)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.soak"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    try:
        text = _soak(options)
    finally:
        shutil.rmtree(options.folder)
    machine.write(options.output, text)


def _soak(options: argparse.Namespace) -> str:
    info = made_up.run(options.layers, options.experts, 256, options.folder)
    rng = np.random.default_rng(0)
    made = [made_up.step(info, number, rng) for number in range(1, _DIFFERENT_STEPS + 1)]
    exporter = PrometheusSink(ExporterOptions(), announce=lambda line: None)
    sinks = SinkSet(
        [MetricsLog(), RoutingLog(), HistorySink(str(options.folder / "history")), exporter]
    )
    sinks.start(info)
    sinks.flush()
    memory: list[tuple[int, float]] = []
    handing_over = []
    processor, started = time.process_time(), time.monotonic()
    making = 0.0
    for number in range(1, options.steps + 1):
        before = time.process_time()
        record, routing = _numbered(made, number)
        making += time.process_time() - before
        before = time.perf_counter()
        sinks.step(record, routing)
        handing_over.append(time.perf_counter() - before)
        if number % _SCRAPE_EVERY == 0:
            sinks.flush(60.0)  # so that none is dropped: here no training gives the sinks time
            assert exporter.url is not None
            urllib.request.urlopen(exporter.url, timeout=60).read()
        if number % (options.steps // _SAMPLES) == 0:
            memory.append((number, _resident()))
    sinks.flush(600.0)
    processor, seconds = time.process_time() - processor - making, time.monotonic() - started
    dropped = sinks.dropped_records
    sinks.close()
    return _report(options, memory, handing_over, (processor, seconds), dropped)


def _report(
    options: argparse.Namespace,
    memory: list[tuple[int, float]],
    handing_over: list[float],
    total: tuple[float, float],
    dropped: int,
) -> str:
    processor, seconds = total
    files = {
        name: sum(p.stat().st_size for p in options.folder.glob(pattern) if p.is_file())
        for name, pattern in (
            ("metrics.jsonl", "metrics.jsonl"),
            ("routing.jsonl", "routing.jsonl"),
            ("history", "history/**/*"),
        )
    }
    notes = [
        f"{options.steps:,} steps of {options.layers} layers x {options.experts} experts in "
        f"{seconds:.0f} s; metrics.jsonl, routing.jsonl, history and Prometheus exporter in "
        f"default detail, scraped every {_SCRAPE_EVERY} steps; {dropped} records dropped",
        "the training thread only hands a step over; the rest happens in the telemetry thread, "
        "scrapes included",
    ]
    costs = machine.table(
        ["a step", "ms"],
        [
            ["training thread, median", f"{1e3 * statistics.median(handing_over):.4f}"],
            ["training thread, mean", f"{1e3 * statistics.fmean(handing_over):.4f}"],
            ["processor time of all threads, mean", f"{1e3 * processor / options.steps:.2f}"],
        ],
    )
    table = machine.table(
        ["steps", "resident memory MB"], [[f"{n:,}", f"{mb:.1f}"] for n, mb in memory]
    )
    sizes = machine.table(
        ["file", "MB", "bytes a step"],
        [[n, f"{size / 1e6:.1f}", f"{size / options.steps:,.0f}"] for n, size in files.items()],
    )
    heading = machine.heading("Soak of telemetry", notes)
    return "\n".join([heading, costs, table, sizes])


def _numbered(made: Sequence[_Step], number: int) -> _Step:
    record, routing = made[number % len(made)]
    return replace(record, step=number), replace(routing, step=number)


def _resident() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    raise AssertionError("no VmRSS")


if __name__ == "__main__":
    main()

"""What the Prometheus exporter takes: time to record a step, time and size of a scrape.

The exporter serves a made-up run of 61 layers, 256 experts, 64 expert parallel ranks and 256
processes on loopback, and is asked as Prometheus asks, gzip included, while steps arrive. The
library's own text format is timed beside ours. Run it from the repository root:
`python -m benchmarks.scrape`.
"""

import argparse
import gzip
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks import machine, made_up
from moe_megatron.telemetry.exporter.exposition import write_text
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.metric import ExpertDetail
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo

_REPEATS = 60


def main() -> None:
    """Measure every detail and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    run = made_up.run(options.layers, options.experts, options.ranks)
    rows = [_measure(run, detail) for detail in ExpertDetail]
    header = [
        "detail", "series", "record a step, ms", "scrape, ms", "95th percentile",
        "of which text, processor ms", "text by prometheus_client", "bytes", "gzip bytes",
    ]  # fmt: skip
    notes = [
        f"{options.layers} layers x {options.experts} experts, {options.ranks} processes",
        f"medians of {_REPEATS}; a scrape is a request over loopback with gzip, from connecting to "
        "the last byte, in the same process as the exporter",
    ]
    heading = machine.heading("Scrapes of the Prometheus exporter", notes)
    machine.write(options.output, heading + "\n" + machine.table(header, rows))


def _measure(run: RunInfo, detail: ExpertDetail) -> list[str]:
    registry, rng = CollectorRegistry(), np.random.default_rng(0)
    options = ExporterOptions(detail=detail, max_series=10**6)
    sink = PrometheusSink(options, announce=lambda line: None, registry=registry)
    sink.start(run)
    for split in ("validation", "test"):
        sink.evaluation(EvalRecord(step=1, split=split, loss=2.0))
    recording, scraping, sizes = [], [], (0, 0)
    for step in range(1, _REPEATS + 1):
        record, routing = made_up.step(run, step, rng)
        recording.append(_timed(time.perf_counter, lambda r=record, s=routing: sink.step(r, s)))
        scraping.append(_timed(time.perf_counter, lambda: _ask(sink.url)))
    packed = _ask(sink.url)
    sizes = (len(gzip.decompress(packed)), len(packed))
    ours = [_timed(time.thread_time, lambda: write_text(registry)) for _ in range(_REPEATS)]
    theirs = [_timed(time.thread_time, lambda: generate_latest(registry)) for _ in range(20)]
    number = write_text(registry).decode().split("\nmoe_exporter_series ")[1].split()[0]
    sink.close()
    medians = [statistics.median(recording), statistics.median(scraping)]
    medians += [float(np.quantile(scraping, 0.95)), statistics.median(ours)]
    medians += [statistics.median(theirs)]
    times = [f"{1e3 * value:.2f}" for value in medians]
    return [detail.name.lower(), f"{float(number):,.0f}", *times, *(f"{size:,}" for size in sizes)]


def _ask(url: str | None) -> bytes:
    assert url is not None
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
    return body


def _timed(clock: Callable[[], float], action: Callable[[], Any]) -> float:
    started = clock()
    action()
    return clock() - started


if __name__ == "__main__":
    main()

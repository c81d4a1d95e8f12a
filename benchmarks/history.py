"""What the routing history of a large run takes: disk, time of a step, time to read a window.

It writes a history of 100,000 steps, 61 layers and 256 experts through `HistorySink`, as a run
does, and reads windows of it back. The counts are drawn for tokens that choose among experts of
unequal popularity. They repeat after a thousand steps, which chunks, each compressed for itself,
cannot see. Run it from the repository root: `python -m benchmarks.history`. It needs about 5 GB of
disk and leaves nothing behind.
"""

import argparse
import importlib.metadata
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import machine
from moe_megatron.files import forget_pages
from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.history import HistorySink, RoutingHistory
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

_POOL = 1000
_WINDOW = 1000
_REPEATS = 15
_RECORD = StepRecord(
    step=1,
    loss=2.0,
    learning_rate=1e-4,
    grad_norm=1.0,
    step_seconds=1.0,
    tokens=0,
    total_steps=10**6,
)


def main() -> None:
    """Write, read, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2**20, help="of one step")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pool = _snapshots(options.layers, options.experts, options.top_k, options.tokens)
    with tempfile.TemporaryDirectory(prefix="history-", dir=options.folder) as folder:
        run = _run_info(pool[0], Path(folder))
        writing = _write(run, pool, options.steps)
        files = machine.table(["array", "files", "MB", "bytes a step"], _sizes(run, options.steps))
        reading = _read(run)
        queueing = _queue(run, pool)
    raw = options.layers * options.experts * 8
    notes = [
        f"{options.steps:,} steps, {options.layers} layers x {options.experts} experts, top "
        f"{options.top_k} of {options.tokens:,} tokens; as int64 in memory {raw:,} bytes a step",
        "warm: the files are in the page cache; cold: the kernel was asked to drop them from it "
        "(posix_fadvise) before each window, which a virtual disk may still answer from its own",
        f"{_REPEATS} windows at random places; a window is decoded by all cores",
        f"tensorstore {importlib.metadata.version('tensorstore')}; every file is forced to disk "
        "(fsync) in the background",
    ]
    text = machine.heading("The routing history", notes)
    machine.write(options.output, "\n".join([text, writing, queueing, files, reading]))


def _snapshots(num_layers: int, num_experts: int, top_k: int, tokens: int) -> list[RoutingSnapshot]:
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.full(num_experts, 8.0), num_layers)
    layers = tuple(range(1, num_layers + 1))
    pool = []
    for step in range(1, _POOL + 1):
        counts = np.stack([rng.multinomial(tokens * top_k, shares) for shares in popularity])
        pool.append(
            RoutingSnapshot(
                step=step,
                tokens=tokens,
                top_k=top_k,
                layers=layers,
                tokens_per_expert=counts,
                assigned=np.full(num_layers, tokens * top_k),
                dropped=np.zeros(num_layers, dtype=np.int64),
                per_layer={name: 1 + rng.random(num_layers) for name in quantity_names()},
            )
        )
    return pool


def _run_info(snapshot: RoutingSnapshot, folder: Path) -> RunInfo:
    return RunInfo(
        run_dir=folder,
        total_steps=10**6,
        start_step=0,
        num_layers=len(snapshot.layers),
        num_experts=snapshot.num_experts,
        top_k=snapshot.top_k,
        world_size=1,
        layers=snapshot.layers,
        description="",
    )


def _write(run: RunInfo, pool: list[RoutingSnapshot], num_steps: int) -> str:
    """Write as fast as possible: nothing hides behind a training step."""
    sink = HistorySink(_folder(run))
    sink.start(run)
    wall = cpu = 0.0
    times = []
    for step in range(1, num_steps + 1):
        snapshot = replace(pool[step % len(pool)], step=step)
        started, used = time.perf_counter(), time.process_time()
        sink.step(_RECORD, snapshot)
        times.append(time.perf_counter() - started)
        wall, cpu = wall + times[-1], cpu + time.process_time() - used
    started, used = time.perf_counter(), time.process_time()
    sink.close()
    wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - used
    rows = [
        [
            "append, mean (background thread, chunks and all waiting included)",
            _ms(wall / num_steps),
        ],
        ["append, median", _ms(statistics.median(times))],
        ["processor time of all threads, mean", _ms(cpu / num_steps)],
    ]
    return machine.table(["a step, back to back", "ms"], rows)


def _queue(run: RunInfo, pool: list[RoutingSnapshot]) -> str:
    """What the training thread itself pays: it only puts a record on a queue."""
    folder = _folder(run).with_name("queued")
    sinks = SinkSet([HistorySink(folder)])
    sinks.start(run)
    sinks.flush()
    times = []
    for step in range(1, 1001):
        snapshot = replace(pool[step % len(pool)], step=step)
        started = time.perf_counter()
        sinks.step(_RECORD, snapshot)
        times.append(time.perf_counter() - started)
        time.sleep(0.005)
    sinks.close()
    ninety_nine = statistics.quantiles(times, n=100)[98]
    rows = [["mean", _ms(statistics.mean(times))], ["99th percentile", _ms(ninety_nine)]]
    return machine.table(["the training thread, a step", "ms"], rows)


def _sizes(run: RunInfo, num_steps: int) -> list[list[str]]:
    rows, total_files, total = [], 0, 0
    for folder in sorted(path for path in _folder(run).iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        rows.append(_size_row(folder.name, len(sizes), sum(sizes), num_steps))
        total_files, total = total_files + len(sizes), total + sum(sizes)
    return [*rows, _size_row("all", total_files, total, num_steps)]


def _size_row(name: str, files: int, size: int, num_steps: int) -> list[str]:
    return [name, f"{files:,}", f"{size / 1e6:,.1f}", f"{size / num_steps:,.0f}"]


def _read(run: RunInfo) -> str:
    history = RoutingHistory(_folder(run))
    places = random.Random(0)
    last = history.last_step

    def window() -> None:
        first = places.randint(1, max(1, last - _WINDOW + 1))
        history.tokens_per_expert(first, min(last, first + _WINDOW - 1))

    def narrow() -> None:
        first = places.randint(1, max(1, last - _WINDOW + 1))
        layer = [places.choice(history.layers)]
        history.tokens_per_expert(first, min(last, first + _WINDOW - 1), layers=layer)

    looks: list[tuple[str, int, Callable[[], object]]] = [
        (f"any {_WINDOW:,} steps, all layers and experts", _REPEATS, window),
        (f"any {_WINDOW:,} steps, one layer", _REPEATS, narrow),
        ("one quantity of all layers, all steps", 5, lambda: history.series(history.quantities[0])),
        ("one layer, all experts, all steps", 3, lambda: history.tokens_per_expert(layers=[1])),
        ("opening it", _REPEATS, lambda: RoutingHistory(_folder(run))),
    ]
    rows = []
    for name, repeats, look in looks:
        warm, cpu, cold = [], [], []
        for _ in range(repeats):
            state = places.getstate()
            forget_pages(_folder(run))
            cold.append(_timed(look)[0])
            places.setstate(state)
            seconds, used = _timed(look)
            warm.append(seconds)
            cpu.append(used)
        rows.append(
            [
                name,
                _ms(min(warm)),
                _ms(statistics.median(warm)),
                _ms(statistics.median(cpu)),
                _ms(statistics.median(cold)),
            ]
        )
    rows.append(_json_row(history))
    return machine.table(
        ["read", "warm, best ms", "warm, median ms", "processor ms", "cold, median ms"], rows
    )


def _json_row(history: RoutingHistory) -> list[str]:
    """The same window as lines of routing.jsonl, from memory."""
    lines = [
        json.dumps(s.to_json_dict()) for s in history.snapshots(1, min(100, history.last_step))
    ]
    seconds, used = _timed(lambda: [RoutingSnapshot.from_json_dict(json.loads(x)) for x in lines])
    scale = _WINDOW / len(lines)
    size = sum(map(len, lines)) / len(lines)
    name = f"for comparison: {_WINDOW:,} lines of routing.jsonl ({size:,.0f} bytes each)"
    return [name, "-", _ms(scale * seconds), _ms(scale * used), "-"]


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - used


def _folder(run: RunInfo) -> Path:
    assert run.run_dir is not None
    return run.run_dir / "history"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}" if seconds < 1e-2 else f"{1e3 * seconds:,.1f}"


if __name__ == "__main__":
    main()

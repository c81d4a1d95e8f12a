"""A history of 100,000 steps of 61 layers x 256 experts: its first overview, and jumps through it.

The steps are made up, repeat after some hundred, which chunks that are compressed one by one do not
see, and are written by the sinks of a training.
"""

import random
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import machine, made_up
from benchmarks.dashboard.seen_page import SeenPage
from benchmarks.dashboard.server import Server, dashboard
from moe_megatron.files import forget_pages
from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.history import HISTORY_FOLDER, HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog
from moe_megatron.webapp.run_facts import run_id

_DIFFERENT = 199
"""Steps that are made up; a prime, so that no two columns are of the same ones."""
_WARM, _COLD = 200, 50
_COLUMNS = 240
"""Of the overview, as the page asks for it."""
LIMIT_MS = 100
"""What a jump shall take at most."""


def write(run_dir: Path, layers: int, experts: int, steps: int) -> None:
    """The folder of a run."""
    info = replace(made_up.run(layers, experts, 16, run_dir), quantities=tuple(quantity_names()))
    rng = np.random.default_rng(0)
    made = [made_up.step(info, number, rng) for number in range(1, _DIFFERENT + 1)]
    sinks = (MetricsLog(), HistorySink(run_dir / HISTORY_FOLDER))
    for sink in sinks:
        sink.start(info)
    for number in range(1, steps + 1):
        record, routing = made[number % _DIFFERENT]
        for sink in sinks:
            sink.step(replace(record, step=number), replace(routing, step=number))
    for sink in sinks:
        sink.close()


def section(page: SeenPage, work: Path, layers: int, experts: int, steps: int) -> str:
    """Measure, and say it as two tables.

    Args:
        page: An open browser.
        work: A folder, which may have the run of an earlier call.
        layers: MoE layers of the run.
        experts: Experts of each.
        steps: Length of the history.
    """
    run_dir = work / f"long_{layers}_{experts}_{steps}"
    if not (run_dir / "written").exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        write(run_dir, layers, experts, steps)
        (run_dir / "written").touch()
    title = f"{steps:,} steps of {layers} x {experts}"
    tables = [_overview(run_dir, title)]
    places = random.Random(0)
    with dashboard(run_dir, run_id(run_dir)) as server:
        _ask(server, f"layers?columns={_COLUMNS}")

        def ask() -> float:
            step = places.randint(1, steps)
            return _ask(server, f"matrix?first={step}&last={step}")

        def ask_cold() -> float:
            forget_pages(run_dir / HISTORY_FOLDER)
            return ask()

        page.go(f"{server.url}#run={server.run_id}&step=1")
        at = 1

        def jump() -> float:
            nonlocal at
            at = places.choice([it for it in places.sample(range(1, steps), 3) if _other(it, at)])
            return page.jump(at)

        def jump_cold() -> float:
            forget_pages(run_dir / HISTORY_FOLDER)
            return jump()

        looks: list[tuple[str, Callable[[], float], int]] = [
            ("server, files in the page cache", ask, _WARM),
            ("server, files dropped from it", ask_cold, _COLD),
            ("bar moved until drawn, files in the page cache", jump, _WARM),
            ("bar moved until drawn, files dropped from it", jump_cold, _COLD),
        ]
        rows = [_row(name, [look() for _ in range(times)]) for name, look, times in looks]
        page.page.goto("about:blank")
    head = [f"a jump, {title}", "jumps", "p50 ms", "p95 ms", "longest ms", f"under {LIMIT_MS} ms"]
    return "\n".join([*tables, machine.table(head, rows)])


def _other(step: int, before: int) -> bool:
    """Whether they look different."""
    return step % _DIFFERENT != before % _DIFFERENT


def _overview(run_dir: Path, title: str) -> str:
    """A server that has just started is asked for all of it, and again."""
    forget_pages(run_dir / HISTORY_FOLDER)
    with dashboard(run_dir, run_id(run_dir)) as server:
        rows = []
        for name, question in (
            ("the run is opened: each line of metrics.jsonl", ""),
            ("overview of its layers, the first", f"layers?columns={_COLUMNS}"),
            ("the same again", f"layers?columns={_COLUMNS}"),
            ("mean of all as a matrix", "matrix"),
            ("overview of a fifth of it", f"layers?columns={_COLUMNS}&first=1&last=20000"),
        ):
            used = server.processor_seconds
            seconds, used = _ask(server, question), server.processor_seconds - used
            rows.append([name, f"{seconds:.2f}", f"{used:.2f}", f"{server.peak_bytes / 1e6:.0f}"])
    return machine.table([title, "s", "processor s", "most memory so far MB"], rows)


def _ask(server: Server, question: str) -> float:
    address = f"{server.url}api/runs/{server.run_id}/{question}".rstrip("/")
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=600) as answer:
        answer.read()
    return time.perf_counter() - began


def _row(name: str, seconds: Sequence[float]) -> list[str]:
    times = [1e3 * it for it in seconds]
    parts = statistics.quantiles(times, n=20, method="inclusive")
    under = sum(it < LIMIT_MS for it in times) / len(times)
    return [name, f"{len(times)}", f"{statistics.median(times):.1f}", f"{parts[18]:.1f}",
            f"{max(times):.1f}", f"{100 * under:.0f} %"]  # fmt: skip

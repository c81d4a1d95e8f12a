"""What a training pays for a page that is open: periods with and without, in turn, in one run.

Training, server and browser share the machine here; a browser is mostly on another one. So beside
the steps stands the processor time of each. Periods lie in pairs next to each other, as steps do in
paired.py, and a period counts by its median step.
"""

import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.dashboard.seen_page import SeenPage
from benchmarks.dashboard.server import Server, dashboard
from benchmarks.paired import cost
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.webapp.run_facts import run_id

_START_SECONDS = 600.0
_FIRST_STEPS = 10
_ORDER = (False, True, True, False)
"""With the page or without: neither is always the first of its pair."""


def section(page: SeenPage, work: Path, seconds: float, period: float) -> str:
    """Measure, and say it as two tables.

    Args:
        page: An open browser.
        work: An empty folder.
        seconds: How long it goes on.
        period: Seconds with the page, and without.
    """
    run_dir = work / "training"
    words = ["train", "--config", "demo_moe", "--num-processes", "2", "--train-iters", "1000000"]
    with (work / "training.log").open("w") as log:
        command = [sys.executable, "-m", "moe_megatron", *words, "--run-dir", str(run_dir)]
        training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for_steps(run_dir, training)
        with dashboard(run_dir, run_id(run_dir)) as server:
            return _measure(page, server, training.pid, run_dir, seconds, period)
    finally:
        training.terminate()
        training.wait(120)


def _measure(
    page: SeenPage, server: Server, training: int, run_dir: Path, seconds: float, period: float
) -> str:
    on: list[bool] = []
    medians: list[float] = []
    used = dict.fromkeys(("training", "server", "browser"), 0.0)
    open_seconds, steps_with = 0.0, 0
    until = time.monotonic() + seconds
    for opened in cycle(_ORDER):
        if time.monotonic() >= until and len(on) % 2 == 0:
            break
        if opened:
            page.go(f"{server.url}#run={server.run_id}")
        else:
            page.page.goto("about:blank")
            page.page.wait_for_timeout(2000)
        done, before, began = len(_steps(run_dir)), _processor(training, server), time.monotonic()
        page.page.wait_for_timeout(1e3 * period)
        found = _steps(run_dir)[done + 1 :]  # the step in which it was switched is left out
        after = _processor(training, server)
        on.append(opened)
        medians.append(statistics.median(found))
        if opened:
            open_seconds += time.monotonic() - began
            steps_with += len(found) + 1
            used = {name: used[name] + after[name] - before[name] for name in used}
    found_cost = cost(on, medians)
    interval = found_cost.share_interval
    spread = statistics.quantiles([m for m, it in zip(medians, on, strict=True) if not it], n=4)
    quartiles = f"quartiles {1e3 * spread[0]:.0f} to {1e3 * spread[2]:.0f}"
    pairs = machine.table(
        ["pairs", "without ms", "with ms", "difference", "95 % interval", "under 1 %?"],
        [
            [
                str(found_cost.pairs),
                f"{found_cost.off_ms:.0f} ({quartiles})",
                f"{found_cost.on_ms:.0f}",
                f"{100 * found_cost.share:+.1f} %",
                "-"
                if interval is None
                else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f} %",
                found_cost.verdict(),
            ]
        ],
    )
    rows = [
        [name, f"{100 * it / open_seconds:.1f} %", f"{1e3 * it / steps_with:.1f}",
         f"{100 * it / used['training']:.2f} %"]
        for name, it in used.items()
    ]  # fmt: skip
    head = ["while the page is open", "of a processor", "ms a step", "of that of training"]
    return "\n".join([pairs, machine.table(head, rows)])


def _wait_for_steps(run_dir: Path, training: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while not (run_dir / METRICS_FILE).exists() or len(_steps(run_dir)) < _FIRST_STEPS:
        if training.poll() is not None or time.monotonic() > until:
            raise SystemExit("error: the training has not begun; its log says why.")
        time.sleep(0.5)


def _steps(run_dir: Path) -> list[float]:
    """Seconds of each step so far."""
    found = read_metrics(run_dir / METRICS_FILE)
    return [it.step_seconds for it in found if isinstance(it, StepRecord)]


def _processor(training: int, server: Server) -> dict[str, float]:
    """Processor seconds so far of the training's processes, the server, and the browser."""
    browser = [it for it in psutil.Process().children(recursive=True) if "chrom" in it.name()]
    return {
        "training": _sum(psutil.Process(training).children(recursive=True)),
        "server": server.processor_seconds,
        "browser": _sum(browser),
    }


def _sum(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total

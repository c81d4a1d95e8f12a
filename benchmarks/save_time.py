"""What saving costs a run: not at all, in the step, in the background, with and without checksums.

All contenders run at the same time and take turns (turns.py). A turn is one interval of saving with
the save in its middle, so that what a save does in the background falls into the turn of the one
who saves. Run it from the repository root: `python -m benchmarks.save_time`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.paired import median_interval
from benchmarks.ranks import Contender
from benchmarks.turns import ring

NEVER, PLAIN, SAVES, BACKGROUND = (
    "no saves",
    "saves without checksums",
    "saves",
    "saves in the background",
)
COMPARED = ((SAVES, NEVER), (BACKGROUND, NEVER), (BACKGROUND, SAVES), (SAVES, PLAIN))


def main() -> None:
    """Run the contenders and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="demo_moe")
    parser.add_argument("--interval", type=int, default=50, help="steps from save to save")
    parser.add_argument("--turns", type=int, default=12, help="measured turns of each contender")
    parser.add_argument("--warm-up", type=int, default=1, help="whole turns before them")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.turns < 2:
        parser.error(f"--turns is {options.turns}; a median and its interval need at least 2")

    with tempfile.TemporaryDirectory(prefix="save-time-") as folder:
        results = _run(options, Path(folder))
    begin = options.interval - options.interval // 2 + options.warm_up * options.interval
    turns = {name: _turns(result["wall"], begin, options) for name, result in results.items()}
    notes = [
        f"{options.preset}, two processes, all contenders at once, in turns of {options.interval} "
        f"steps with one save in the middle of each: {options.turns} turns are measured, after "
        f"{options.warm_up} and a half",
        "difference: of neighbouring turns, median (its 95 % interval), as a share of a turn "
        "without saves",
    ]
    text = machine.heading("What saving costs", notes)
    text += "\n" + _times(turns, results) + "\n" + _differences(turns)
    machine.write(options.output, text)


def _run(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    early = options.interval // 2
    steps = (1 + options.warm_up + options.turns) * options.interval - early
    names = (NEVER, PLAIN, SAVES, BACKGROUND)
    with ring(len(names), options.interval, early=early) as seats, ThreadPoolExecutor() as threads:
        contenders = [
            Contender("benchmarks.saving_rank", _task(name, steps, options, folder), seat=seat)
            for name, seat in zip(names, seats, strict=True)
        ]
        try:
            results = list(threads.map(Contender.result, contenders))
        finally:
            for contender in contenders:
                contender.kill()
    return dict(zip(names, results, strict=True))


def _task(name: str, steps: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    overrides = {
        "training.train_steps": steps,
        "training.eval_interval": 10**6,
        "training.eval_steps": 1,
        "checkpoint.save_interval": None if name == NEVER else options.interval,
        "checkpoint.async_save": name == BACKGROUND,
        "checkpoint.keep_last": 2,
        "telemetry.enabled": False,
        "recovery.hang_seconds": 7200,  # who waits for a turn does not hang
    }
    own = folder / name.replace(" ", "-")
    own.mkdir()
    return {
        "preset": options.preset,
        "overrides": overrides,
        "folder": str(own),
        "checksums": name in (SAVES, BACKGROUND),
    }


def _turns(wall: Sequence[float], begin: int, options: argparse.Namespace) -> list[float]:
    """Seconds of each measured turn."""
    starts = range(begin, begin + options.turns * options.interval, options.interval)
    return [sum(wall[start : start + options.interval]) for start in starts]


def _times(turns: Mapping[str, Sequence[float]], results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, seconds in turns.items():
        low, middle, high = machine.spread(seconds)
        row = [name, f"{middle:.2f} ({low:.2f} to {high:.2f})", "", "", ""]
        if name != NEVER:
            still = statistics.median(results[name]["saves"][1:])
            row[2:4] = [f"{1e3 * still:.0f}", f"{100 * still / middle:.1f} %"]
        if checksums := results[name]["checksums"][1:]:
            row[4] = f"{1e3 * statistics.median(checksums):.0f}"
        rows.append(row)
    header = [
        "contender",
        "turn, seconds (quartiles)",
        "training stands still for a save, ms",
        "of a turn",
        "checksums on rank 0, ms of a processor",
    ]
    return machine.table(header, rows)


def _differences(turns: Mapping[str, Sequence[float]]) -> str:
    base = statistics.median(turns[NEVER])
    rows = []
    for one, other in COMPARED:
        differences = [a - b for a, b in zip(turns[one], turns[other], strict=True)]
        share = f"{100 * statistics.median(differences) / base:+.1f} %"
        interval = median_interval(differences)
        if interval is not None:
            low, high = (100 * value / base for value in interval)
            share += f" ({low:+.1f} to {high:+.1f})"
        rows.append([f"{one}, against {other}", share])
    return machine.table(["compared", "difference"], rows)


if __name__ == "__main__":
    main()

"""The command: `python -m benchmarks.dashboard`; it prints and writes the tables.

It needs Chromium, the built page (`make ui`) and 3 GB of disk, and takes about ten minutes.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine
from benchmarks.dashboard import beside_training, fed_live, scrubbed
from benchmarks.dashboard.seen_page import seen_page
from moe_megatron.webapp.built_page import PAGE

STAGES = ("live", "history", "training")


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100_000, help="of the history")
    parser.add_argument("--seconds", type=float, default=60, help="that the live run is followed")
    parser.add_argument("--training-seconds", type=float, default=300)
    parser.add_argument("--period", type=float, default=10, help="seconds with the page, without")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-dashboard"))
    parser.add_argument("--keep", action="store_true", help="the history, for another time")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not (PAGE / "index.html").is_file():
        print("error: the page is not built; run make ui.", file=sys.stderr)
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    for name in ("live", "training"):
        shutil.rmtree(options.work / name, ignore_errors=True)
    shape = options.layers, options.experts
    with seen_page(*shape) as page:
        stages: dict[str, Callable[[], str]] = {
            "live": lambda: fed_live.section(page, options.work, *shape, options.seconds),
            "history": lambda: scrubbed.section(page, options.work, *shape, options.steps),
            "training": lambda: beside_training.section(
                page, options.work, options.training_seconds, options.period
            ),
        }
        texts = [stages[name]() for name in STAGES if name in options.only]
    if not options.keep:
        shutil.rmtree(options.work)
    notes = [
        "training, server and Chromium share the machine; the page is 1280 x 900 pixels, drawn "
        "without a GPU",
        "steps are made up, but for those of the training (demo_moe in two processes)",
        "files are dropped from the page cache by posix_fadvise, which a virtual disk may still "
        "answer from its own",
    ]
    machine.write(options.output, "\n".join([machine.heading("The dashboard", notes), *texts]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

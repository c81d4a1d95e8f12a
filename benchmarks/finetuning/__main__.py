"""The command: `python -m benchmarks.finetuning`; it prints and writes the tables."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.finetuning import beside_peft, curves, methods
from benchmarks.finetuning.material import prepare
from benchmarks.finetuning.profiles import PROFILES

STAGES = ("methods", "curves", "peft")
_THREADS = 2
"""At most: what the figures of a laptop are for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="full")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-finetuning"))
    parser.add_argument("--seeds", type=int, default=2, help="of what is compared by seed")
    parser.add_argument("--threads", type=int, help="of a process that has the machine to itself")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=beside_peft.PRECISIONS,
        default=beside_peft.PRECISIONS[:1],
        help="of the stage peft, which is made in each",
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    profile = PROFILES[options.profile]
    threads = options.threads or min(_THREADS, len(os.sched_getaffinity(0)))
    work = options.work.absolute() / profile.name
    work.mkdir(parents=True, exist_ok=True)
    material = prepare(profile, work)
    sections = {
        "methods": lambda: methods.section(
            profile, material, work, seeds=options.seeds, threads=threads
        ),
        "curves": lambda: curves.section(profile, work),
        "peft": lambda: "\n".join(
            beside_peft.section(profile, material, work, threads=threads, precision=it)
            for it in options.precision
        ),
    }
    notes = [f"model: {profile.model}; data: `examples/tour/docstrings.py`"]
    texts = [sections[stage]() for stage in STAGES if stage in options.only]
    machine.write(options.output, "\n".join([machine.heading("Fine-tuning", notes), *texts]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

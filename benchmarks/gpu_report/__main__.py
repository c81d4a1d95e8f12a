"""The command: `python -m benchmarks.gpu_report`; it prints and writes the report."""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.gpu_report import report
from benchmarks.gpu_report.facts import Facts, collect
from benchmarks.gpu_report.runner import Outcome, Place, run_stages, stop_requests
from benchmarks.gpu_report.stages import PROFILES, ROOT, Profile

STOPPED_CODE = 130
"""Exit code where a signal ended it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    It is 0 once there is a report, whatever has failed in it, and 130 where a signal ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="gpu")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for everything")
    arguments = parser.parse_args(words)
    profile = PROFILES[arguments.profile]
    command = shlex.join(["python", "-m", "benchmarks.gpu_report", *words])
    return make_report(profile, arguments.output, budget=arguments.budget, command=command)


def make_report(
    profile: Profile,
    output: Path,
    *,
    budget: float | None = None,
    facts: Facts | None = None,
    command: str = "",
) -> int:
    """Run a profile and write its report, anew after each stage.

    Args:
        profile: What to run.
        output: Where the dated folder goes.
        budget: Seconds for everything; None: those of the profile.
        facts: Of this place; None looks.
        command: What was typed, for the report.

    Returns:
        The exit code.
    """
    started, budget = time.monotonic(), profile.budget if budget is None else budget
    folder = _new_folder(output, f"{datetime.now():%Y-%m-%d}-{profile.name}-report")
    print(f"report: {folder}", flush=True)
    with stop_requests() as stop, tempfile.TemporaryDirectory() as scratch:
        facts = collect(profile.environment) if facts is None else facts
        about = {
            "date": f"{datetime.now():%Y-%m-%d %H:%M}",
            "command": command,
            "profile": profile.name,
            "budget": budget,
        }
        outcomes: list[Outcome] = []
        stages = run_stages(
            profile,
            Place(logs=folder, scratch=Path(scratch)),
            budget=budget - (time.monotonic() - started),
            lacks=lambda stage: facts.lacks(stage.needs),
            stop=stop,
        )
        for outcome in stages:
            outcomes.append(outcome)
            print(f"{outcome.stage.name}: {outcome.status} {outcome.message}".strip(), flush=True)
            data = report.to_data(
                outcomes, facts, about | {"seconds": round(time.monotonic() - started, 1)}
            )
            report.write(folder, data)
        print((folder / report.TABLE_FILE).read_text(encoding="utf-8"))
        return STOPPED_CODE if stop.is_set() else 0


def _new_folder(output: Path, name: str) -> Path:
    """The first of name, name-2, name-3 that is not there yet; made."""
    number = 1
    while True:
        folder = output / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


if __name__ == "__main__":
    sys.exit(main())

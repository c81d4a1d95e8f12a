"""What the programs of a stage measured: how they write it down, and how the report reads it.

A case is written when it is done, so that a stage which runs out of time or memory loses only the
case that it was in. It does not know what is measured.
"""

import json
import statistics
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.json_fields import write_float
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord

RESULTS = "results.jsonl"
TESTS = "tests.xml"
RUN = "run"
"""What a stage leaves in its folder: a line a case, pytest's JUnit file, or the folder of a run."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that a stage measured."""

    name: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """By name with unit, such as "step_ms"; `report.NUMBERS` says how they are shown."""
    error: str | None = None
    """Why there are none, in one line."""


@contextmanager
def case(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Write down one case: the numbers put into what this yields, or the error that ended it.

    Args:
        folder: Of the stage.
        name: Of the case.
    """
    numbers: dict[str, Any] = {}
    error = None
    try:
        yield numbers
    except Exception as problem:
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}".partition("\n")[0]
    line = {"name": name, "numbers": finite(numbers), "error": error}
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_cases(folder: Path) -> list[Case]:
    """The cases written so far."""
    file = folder / RESULTS
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    # A line that ends in nothing is one in which the program was killed.
    return [Case(**json.loads(line)) for line in lines if line.endswith("\n")]


def read_run(folder: Path) -> list[Case]:
    """What a training run wrote to its metrics."""
    file = folder / RUN / METRICS_FILE
    records = list(read_metrics(file)) if file.exists() else []
    steps = [record for record in records if isinstance(record, StepRecord)]
    losses = [record.loss for record in records if isinstance(record, EvalRecord)]
    if not steps:
        return []
    return [Case(name="run", numbers=finite(training(steps) | {"validation_loss": last(losses)}))]


def training(steps: list[StepRecord]) -> dict[str, Any]:
    """Numbers of a run: how its loss went, and the median step of its second half."""
    settled = steps[len(steps) // 2 :]
    return {
        "steps": len(steps),
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
        "step_ms": 1e3 * statistics.median(step.step_seconds for step in settled),
    }


def read_tests(folder: Path) -> list[Case]:
    """The outcome of pytest: one case with the counts, and one for each test that failed."""
    file = folder / TESTS
    if not file.exists():
        return []
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert suite is not None, "pytest writes one suite"
    failed = [
        Case(name=str(test.get("name")), error=str(problem.get("message")).partition("\n")[0])
        for test in suite.iter("testcase")
        for problem in (*test.findall("failure"), *test.findall("error"))
    ]
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    passed = total - skipped - len(failed)
    return [Case(name="tests", numbers={"passed": passed, "failed": len(failed)}), *failed]


def finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers as JSON has them: "nan" and "inf" as text."""
    return {
        name: write_float(value) if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def last(values: list[float]) -> float | None:
    """The last value, None where there is none."""
    return values[-1] if values else None

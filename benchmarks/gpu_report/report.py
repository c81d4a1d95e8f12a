"""From outcomes to the report: plain data for JSON, and from that data the table.

It does not know how stages are run, nor which there are: numbers it has no words for are shown by
their names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.facts import Facts
from benchmarks.gpu_report.runner import NOT_RUN, OK, Outcome
from benchmarks.machine import table
from moe_megatron.files import replace_file

JSON_FILE, TABLE_FILE = "report.json", "report.md"

NUMBERS: Mapping[str, str] = {
    "passed": "{} passed",
    "failed": "{} failed",
    "steps": "{} steps",
    "step_ms": "{:.1f} ms a step",
    "tokens_per_second": "{:,.0f} tokens/s",
    "model_tflops": "{:.4g} TFLOP/s",
    "mfu": "MFU {:.1%}",
    "peak_memory_gib": "{:.1f} GiB",
    "busiest_expert": "busiest expert {:.2f} x mean",
    "first_loss": "first loss {:.3f}",
    "last_loss": "last loss {:.3f}",
    "validation_loss": "validation loss {:.3f}",
    "pairs": "{} pairs",
    "off_ms": "{:.1f} ms without",
    "difference_ms": "{:+.2f} ms with",
    "share": "{:+.2%}",
    "share_interval": "95 % of {0[0]:+.2%} to {0[1]:+.2%}",
    "own_processor_ms": "own processor time {:.2f} ms",
    "verdict": "**{}**",
    "weights": "{:,} weights",
    "gigabytes": "{:.2f} GB",
    "gigabytes_per_second": "{:.2f} GB/s",
}
"""How a number is shown, by its name."""

NOTES = (
    "TFLOP/s are Megatron's count of the model's operations (active experts, causal attention "
    "halved, nothing recomputed) over the median step, the optimizer's included; MFU is their "
    "share of the device's dense peak in the precision of the row, by NVIDIA's data sheet.",
    "Forced routing replaces the gate's logits by random ones, as most published numbers do; real "
    "routing is that of a model a few steps old, which is not that of a trained one.",
    "GiB are the most that tensors took at once on the device.",
)


def to_data(outcomes: Sequence[Outcome], facts: Facts, about: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON has it.

    Args:
        outcomes: Of the stages so far.
        facts: Of the place.
        about: What else stands at its top: date, command, profile, seconds.
    """
    return {**about, **asdict(facts), "stages": [_stage(outcome) for outcome in outcomes]}


def _stage(outcome: Outcome) -> dict[str, Any]:
    stage = outcome.stage
    return {
        "name": stage.name,
        "question": stage.question,
        "command": list(stage.command),
        "limit": stage.limit,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 1),
        "message": outcome.message,
        "log": outcome.log,
        "cases": [asdict(case) for case in outcome.cases],
    }


def to_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown.

    Args:
        report: From `to_data`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    choices = [
        f"{name}: {choice['value']} ({choice['reason']})"
        for name, choice in report["choices"].items()
    ]
    lines = [
        f"# GPU report, profile {report['profile']}",
        "",
        f"- Date: {report['date']}",
        f"- Command: `{report['command']}`, {report['seconds']:.0f} of {report['budget']:.0f} s",
        f"- Commit: {report['commit'] or 'not known'}",
        *(f"- {name}: {value}" for name, value in report["machine"].items()),
        f"- Versions: {versions or 'not known'}",
        *(f"- A run uses {choice}" for choice in choices),
        "",
        table(
            ["stage", "case", "status", "s", "numbers, or why not", "log"],
            [row for stage in report["stages"] for row in _rows(stage)],
        ),
        *(f"- {note}" for note in NOTES),
    ]
    return "\n".join(lines) + "\n"


def _rows(stage: Mapping[str, Any]) -> list[list[str]]:
    """A row a case; and one of the stage itself, unless its cases say it all."""
    log = f"[log]({stage['log']})" if stage["log"] else ""
    seconds = "" if stage["status"] == NOT_RUN else f"{stage['seconds']:.0f}"
    rows = [
        [
            stage["name"],
            case["name"],
            "failed" if case["error"] else OK,
            seconds,
            _cell(case["error"] or shown(case["numbers"])),
            log,
        ]
        for case in stage["cases"]
    ]
    if stage["status"] != OK:
        rows.append([stage["name"], "", stage["status"], seconds, _cell(stage["message"]), log])
    return rows


def shown(numbers: Mapping[str, Any]) -> str:
    """Numbers for people; those that are None are left out."""
    return ", ".join(_number(name, value) for name, value in numbers.items() if value is not None)


def _number(name: str, value: Any) -> str:
    form = NUMBERS.get(name)
    if form is None:
        return f"{name} {value}"
    # "nan" and "inf" are text in JSON, which forms of numbers do not take.
    is_text = isinstance(value, str) and ":" in form
    return f"{name} {value}" if is_text else form.format(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Write both files, whole or not at all.

    Args:
        folder: Of the report.
        report: From `to_data`.
    """
    text = json.dumps(report, indent=2, allow_nan=False)
    replace_file(folder / JSON_FILE, [text.encode()])
    replace_file(folder / TABLE_FILE, [to_text(report).encode()])

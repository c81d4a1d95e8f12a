"""The benchmark of fine-tuning with its tiny profile: every stage works, and is not repeated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.finetuning.curves import ALONE, KINDS, LAYOUTS
from benchmarks.finetuning.methods import METHODS
from tests.functional.conftest import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(1200)]


def cells(text: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in row] for row in rows]


def test_every_stage_has_its_numbers_and_is_kept(start: Callable[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "finetuning.md"
    words = [sys.executable, "-m", "benchmarks.finetuning", "--profile", "tiny", "--seeds", "1"]
    words += [
        "--precision",
        "fp32",
        "--threads",
        "1",
        "--work",
        tmp_path / "work",
        "--output",
        output,
    ]
    first = start(words, ROOT)
    assert first.end(1000) == 0, first.output
    text = output.read_text()
    assert "failed" not in text, first.output
    rows = {row[0]: row for row in cells(text.partition("## Curves")[0])}
    for method in METHODS:
        assert 5 < float(rows[method.name][-1]) < 7, method.name
    full, own, shared = (rows[it] for it in ("full", "LoRA, own", "LoRA, shared"))
    numbers = [int(row[3].partition(" ")[0].replace(",", "")) for row in (full, own, shared)]
    assert numbers[0] > numbers[1] == numbers[2]
    assert int(shared[2]) > int(own[2]), "the rank is raised"
    curves = [row for row in cells(text) if row[0] in KINDS and row[1] in LAYOUTS]
    assert len(curves) == len(KINDS) * len(LAYOUTS)
    apart = [row for row in curves if row[1] != ALONE]
    assert all(int(row[4]) == 3 and float(row[6]) < 1e-5 for row in apart), "in all three steps"
    section = text.partition("## Beside peft, fp32")[2].partition("\n## ")[0]
    steps = [row for row in cells(section) if row[0].isdecimal()]
    assert steps
    assert all(abs(float(row[2]) - float(row[3])) < 1e-4 for row in steps)

    again = start(words, ROOT)
    assert again.end(300) == 0, again.output
    assert " ..." not in again.output
    assert cells(output.read_text()) == cells(text)

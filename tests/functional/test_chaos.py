"""A real training that is harmed at random moments ends as one that nobody touched."""

import json
import sys
from pathlib import Path

import pytest

from moe_megatron.testing.programs import start_program


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("harms", "hits", "steps"),
    [
        (["flip-bit", "nan-gradient"], 2, 80),
    ],
)
def test_harmed_training_ends_bit_equal_with_nothing_left(
    harms: list[str], hits: int, steps: int, tmp_path: Path
) -> None:
    words = ["chaos", "--hits", hits, "--steps", steps, "--harms", *harms]
    program = start_program(
        [sys.executable, "-m", "moe_megatron.cli.main", *words, "--output", tmp_path / "arena"],
        log=tmp_path / "log",
        directory=tmp_path,
    )
    try:
        code = program.end(seconds=1500)
    finally:
        program.kill()
    assert code == 0, program.output
    assert f"{hits} hits, 0 failures." in program.output
    done = [json.loads(line) for line in (tmp_path / "arena" / "hits.jsonl").open()]
    assert {hit["harm"] for hit in done} == set(harms)
    assert "survived" in (tmp_path / "arena" / "report.md").read_text()

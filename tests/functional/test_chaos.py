"""A real training that is harmed at random moments ends as one that nobody touched."""

import json
import sys
import time
from pathlib import Path

import pytest

from moe_megatron.errors import INTERRUPTED
from moe_megatron.testing.programs import Program, start_program

pytestmark = [
    pytest.mark.deep,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.timeout(900),
]


def campaign(place: Path, *words: object) -> Program:
    command = [sys.executable, "-m", "moe_megatron", "chaos", *words]
    arena = ["--output", place / "arena"]
    return start_program([*command, *arena], log=place / "log", directory=place)


@pytest.mark.parametrize(
    ("harms", "hits", "steps"),
    [
        (["flip-bit", "nan-gradient"], 2, 40),
    ],
)
def test_harmed_training_ends_bit_equal_with_nothing_left(
    harms: list[str], hits: int, steps: int, tmp_path: Path
) -> None:
    program = campaign(tmp_path, "--hits", hits, "--steps", steps, "--harms", *harms)
    try:
        code = program.end(seconds=1500)
    finally:
        program.kill()
    assert code == 0, program.output
    assert f"{hits} hits, 0 failures." in program.output
    done = [json.loads(line) for line in (tmp_path / "arena" / "hits.jsonl").open()]
    assert {hit["harm"] for hit in done} == set(harms)
    assert "survived" in (tmp_path / "arena" / "report.md").read_text()


def test_campaign_that_is_ended_takes_its_job_and_its_disks_along(tmp_path: Path) -> None:
    program = campaign(tmp_path, "--hits", 1, "--steps", 100_000)
    try:
        while not (tmp_path / "arena" / "untouched" / "metrics.jsonl").exists():
            assert program.process.poll() is None, program.output
            program.family()
            time.sleep(0.1)
        program.process.terminate()
        assert program.end() == INTERRUPTED, program.output
        assert program.family() == []
    finally:
        program.kill()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()

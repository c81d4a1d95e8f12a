"""The parts of the GPU report that start nothing: speed, results, facts and the table."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_report import report
from benchmarks.gpu_report.facts import Facts
from benchmarks.gpu_report.results import (
    RESULTS,
    TESTS,
    Case,
    case,
    read_cases,
    read_run,
    read_tests,
    training,
)
from benchmarks.gpu_report.runner import FAILED, NOT_RUN, OK, Outcome
from benchmarks.gpu_report.speed import speed
from benchmarks.gpu_report.stages import PROFILES, Stage
from moe_megatron.telemetry.values.records import StepRecord

STAGE = Stage(name="shapes, bf16", question="How fast?", command=("{python}",), limit=9.0)
ABOUT = {
    "date": "2026-11-26 12:00",
    "command": "python -m benchmarks.gpu_report",
    "profile": "gpu",
    "budget": 540.0,
    "seconds": 12.3,
}
FACTS = Facts(
    machine={"GPUs": "H200"},
    choices={"transformer": {"value": "local", "reason": "it is not installed"}},
    versions={"torch": "2.11"},
    commit="abc",
)


def text_of(*outcomes: Outcome) -> str:
    return report.to_text(report.to_data(outcomes, FACTS, ABOUT))


# --- speed ---------------------------------------------------------------------------------------


def test_speed_is_operations_per_second_and_their_share_of_the_peak() -> None:
    numbers = speed(step_seconds=0.5, tokens=1000, flops_per_token=2e11, peak_tflops=1000.0)
    assert numbers == {
        "step_ms": 500.0,
        "tokens_per_second": 2000.0,
        "model_tflops": 400.0,
        "mfu": 0.4,
    }


def test_device_without_a_known_peak_has_no_mfu() -> None:
    numbers = speed(step_seconds=1.0, tokens=1, flops_per_token=3e12, peak_tflops=None)
    assert (numbers["model_tflops"], numbers["mfu"]) == (3.0, None)


def test_model_without_a_known_count_has_neither() -> None:
    numbers = speed(step_seconds=1.0, tokens=1, flops_per_token=None, peak_tflops=1000.0)
    assert (numbers["model_tflops"], numbers["mfu"]) == (None, None)


# --- results -------------------------------------------------------------------------------------


def test_failed_case_is_written_and_the_next_one_runs(tmp_path: Path) -> None:
    with case(tmp_path, "first"):
        raise MemoryError("78 GiB are not enough\nfor this")
    with case(tmp_path, "second") as numbers:
        numbers["step_ms"] = 1.5
        numbers["last_loss"] = float("nan")
    assert read_cases(tmp_path) == [
        Case(name="first", error="MemoryError: 78 GiB are not enough"),
        Case(name="second", numbers={"step_ms": 1.5, "last_loss": "nan"}),
    ]


def test_line_that_was_not_finished_is_left_out(tmp_path: Path) -> None:
    with case(tmp_path, "whole"):
        pass
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"name": "ha')
    assert [found.name for found in read_cases(tmp_path)] == ["whole"]


def test_stage_that_left_nothing_has_no_cases(tmp_path: Path) -> None:
    assert read_cases(tmp_path) == read_run(tmp_path) == read_tests(tmp_path) == []


def test_tests_are_counted_and_failed_ones_named(tmp_path: Path) -> None:
    (tmp_path / TESTS).write_text(
        '<testsuites><testsuite tests="4" skipped="1">'
        '<testcase name="test_a"/>'
        '<testcase name="test_b"><failure message="no&#10;GPU"/></testcase>'
        '<testcase name="test_c"><error message="broken"/></testcase>'
        '<testcase name="test_d"><skipped/></testcase></testsuite></testsuites>'
    )
    assert read_tests(tmp_path) == [
        Case(name="tests", numbers={"passed": 1, "failed": 2}),
        Case(name="test_b", error="no"),
        Case(name="test_c", error="broken"),
    ]


def test_step_of_a_run_is_the_median_of_its_second_half() -> None:
    seconds = [9.0, 9.0, 1.0, 2.0, 6.0]
    steps = [
        StepRecord(
            step=step,
            loss=7.0 - step,
            learning_rate=None,
            grad_norm=None,
            step_seconds=seconds[step - 1],
            tokens=1,
            total_steps=5,
        )
        for step in range(1, 6)
    ]
    numbers = {"steps": 5, "first_loss": 6.0, "last_loss": 2.0, "step_ms": 2000.0}
    assert training(steps) == numbers


# --- the table -----------------------------------------------------------------------------------


def test_case_is_a_row_with_its_numbers_in_words() -> None:
    numbers = {"step_ms": 512.34, "mfu": 0.4567, "peak_memory_gib": None, "new_ratio": 3}
    done = Outcome(
        stage=STAGE,
        status=OK,
        seconds=61.2,
        log="shapes-bf16.txt",
        cases=(Case(name="Mixtral", numbers=numbers),),
    )
    row = (
        "| shapes, bf16 | Mixtral | ok | 61 | 512.3 ms a step, MFU 45.7%, new_ratio 3 "
        "| [log](shapes-bf16.txt) |"
    )
    assert row in text_of(done).splitlines()


def test_numbers_that_are_none_or_text_can_be_shown() -> None:
    assert report.shown({"last_loss": "nan", "verdict": "under 1 %"}) == (
        "last_loss nan, **under 1 %**"
    )
    assert report.shown({"share_interval": [-0.016, 0.074]}) == "95 % of -1.60% to +7.40%"
    assert report.shown({"share_interval": None}) == ""


def test_failures_are_rows_beside_what_worked() -> None:
    failed = Outcome(
        stage=STAGE,
        status=FAILED,
        message="1 of 2 cases",
        log="log.txt",
        cases=(Case(name="a"), Case(name="b", error="RuntimeError: x | y")),
    )
    rows = text_of(failed).splitlines()
    assert "| shapes, bf16 | a | ok | 0 |  | [log](log.txt) |" in rows
    assert "| shapes, bf16 | b | failed | 0 | RuntimeError: x \\| y | [log](log.txt) |" in rows
    assert "| shapes, bf16 |  | failed | 0 | 1 of 2 cases | [log](log.txt) |" in rows


def test_stage_that_was_not_run_says_why_and_has_no_log() -> None:
    skipped = Outcome(stage=STAGE, status=NOT_RUN, message="no time left")
    assert "| shapes, bf16 |  | not run |  | no time left |  |" in text_of(skipped).splitlines()


def test_top_names_machine_versions_and_choices() -> None:
    text = text_of()
    for line in (
        "# GPU report, profile gpu",
        "- Command: `python -m benchmarks.gpu_report`, 12 of 540 s",
        "- Commit: abc",
        "- GPUs: H200",
        "- Versions: torch 2.11",
        "- A run uses transformer: local (it is not installed)",
    ):
        assert line in text.splitlines()


def test_both_files_are_written(tmp_path: Path) -> None:
    data = report.to_data([Outcome(stage=STAGE, status=NOT_RUN, message="x")], FACTS, ABOUT)
    report.write(tmp_path, data)
    assert json.loads((tmp_path / report.JSON_FILE).read_text()) == data
    assert (tmp_path / report.TABLE_FILE).read_text() == report.to_text(data)


# --- what a stage needs --------------------------------------------------------------------------


def test_machine_without_a_gpu_lacks_both_and_says_why() -> None:
    facts = Facts(
        choices={
            "device": {"value": "cpu", "reason": "no CUDA device was found"},
            "transformer": {"value": "local", "reason": "Transformer Engine needs a CUDA device"},
        }
    )
    assert facts.lacks(None) is None
    assert facts.lacks("gpu") == "needs a GPU (no CUDA device was found)"
    assert facts.lacks("engine") == (
        "needs a GPU with Transformer Engine (Transformer Engine needs a CUDA device)"
    )


def test_nothing_is_held_against_a_machine_that_is_not_known() -> None:
    assert Facts().lacks("gpu") is Facts().lacks("engine") is None


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_stages_of_a_profile_have_names_of_their_own(name: str) -> None:
    names = [stage.name for stage in PROFILES[name].stages]
    assert len(set(names)) == len(names)


def test_every_stage_gets_its_turn_however_long_others_take() -> None:
    profile, at_the_start = PROFILES["gpu"], 20
    assert sum(stage.limit for stage in profile.stages) + at_the_start <= profile.budget


def test_gpu_tests_are_found_by_their_mark() -> None:
    (tests,) = (stage for stage in PROFILES["gpu"].stages if stage.name == "tests")
    assert "tests/functional/test_gpu.py" in tests.command

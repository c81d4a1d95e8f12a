"""Times of steps: what was kept, skipped and lost, from metrics.jsonl."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, MetricsLog, rewind
from moe_megatron.telemetry.uptime.steps import LostSteps, StepTimes, lost_after
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord


@pytest.fixture
def written(
    tmp_path: Path, make_step: Callable[..., StepRecord], make_run: Callable[..., RunInfo]
) -> Path:
    """A run of six steps of 1, 2, .. 6 seconds, of which the third was skipped."""
    log = MetricsLog()
    log.start(make_run(run_dir=tmp_path))
    for step in range(1, 7):
        log.step(make_step(step, step_seconds=float(step), skipped=step == 3), None)
        if step % 2 == 0:
            log.evaluation(EvalRecord(step=step, split="validation", loss=1.0))
    log.close()
    return tmp_path


def test_steps_after_a_checkpoint_are_lost(written: Path) -> None:
    at = round((written / METRICS_FILE).stat().st_mtime, 3)
    assert lost_after(written, 4) == LostSteps(reached=6, reached_at=at, steps=2, seconds=11.0)
    assert lost_after(written, 6) == LostSteps(reached=6, reached_at=at, steps=0, seconds=0)
    assert lost_after(written, 0) == LostSteps(reached=6, reached_at=at, steps=6, seconds=21.0)


def test_half_written_line_is_no_step_and_a_file_without_records_tells_nothing(
    written: Path, tmp_path: Path
) -> None:
    with (written / METRICS_FILE).open("a") as file:
        file.write('{"kind": "step", "step": 7, "los')
    lost = lost_after(written, 4)
    assert lost is not None
    assert (lost.reached, lost.steps) == (6, 2)
    (written / METRICS_FILE).write_text("damaged\nmore\n")
    assert lost_after(written, 4) is None
    assert lost_after(tmp_path / "gone", 4) is None


def test_sums_of_a_file(written: Path) -> None:
    times = StepTimes.read(written)
    assert (times.kept, times.last, times.total_steps) == (5, 6, 300)
    assert times.kept_seconds == 1 + 2 + 4 + 5 + 6
    assert times.skipped == {3: 3.0}
    assert times.typical == 3.5
    rewind(written / METRICS_FILE, 2)
    assert StepTimes.read(written).kept_seconds == 3.0
    assert StepTimes.read(written, after=1).kept_seconds == 2.0
    assert StepTimes.read(written / "none").last is None


def test_steps_that_are_made_again_were_lost(make_step: Callable[..., StepRecord]) -> None:
    times = StepTimes()
    for step in (1, 2, 3, 4, 2, 3):  # rolled back after step 4 to step 1
        times.add(make_step(step, step_seconds=float(10 * step), skipped=step == 4))
    assert (times.kept, times.kept_seconds, times.skipped) == (3, 60.0, {})
    assert (times.lost_steps, times.lost_seconds) == (3, 90.0)


def test_median_follows_the_steps(make_step: Callable[..., StepRecord]) -> None:
    times = StepTimes()
    assert times.typical == 0.0
    for step in range(1, 1001):
        times.add(make_step(step, step_seconds=float(step)))
        assert times.typical == pytest.approx((step + 1) / 2, rel=0.1)

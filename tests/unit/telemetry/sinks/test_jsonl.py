import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.sinks.jsonl import (
    MetricsLog,
    RoutingLog,
    read_metrics,
    read_routing,
    rewind,
)
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MakeStep = Callable[..., StepRecord]
MakeRun = Callable[..., RunInfo]
Make = Callable[..., RoutingSnapshot]


@pytest.fixture
def write(make_step: MakeStep, make_snapshot: Make) -> Callable[[RunInfo, range], None]:
    """Writes steps, and an evaluation every second step, through both sinks."""

    def write(run: RunInfo, steps: range) -> None:
        for sink in (MetricsLog(), RoutingLog()):
            sink.start(run)
            for step in steps:
                sink.step(make_step(step), make_snapshot(step))
                if step % 2 == 0:
                    sink.evaluation(EvalRecord(step=step, split="validation", loss=2.0))
            sink.close()

    return write


Write = Callable[[RunInfo, range], None]


def numbers(run: RunInfo) -> tuple[list[int], list[int], list[int]]:
    assert run.run_dir is not None
    metrics = list(read_metrics(run.run_dir / "metrics.jsonl"))
    return (
        [record.step for record in metrics if isinstance(record, StepRecord)],
        [record.step for record in metrics if isinstance(record, EvalRecord)],
        [snapshot.step for snapshot in read_routing(run.run_dir / "routing.jsonl")],
    )


def test_records_read_back_equal(write: Write, make_run: MakeRun, make_step: MakeStep) -> None:
    run = make_run()
    write(run, range(1, 5))
    assert run.run_dir is not None
    records = list(read_metrics(run.run_dir / "metrics.jsonl"))
    evaluation = EvalRecord(step=2, split="validation", loss=2.0)
    assert records[:3] == [make_step(1), make_step(2), evaluation]
    assert numbers(run) == ([1, 2, 3, 4], [2, 4], [1, 2, 3, 4])


def test_each_record_is_on_disk_at_once(make_run: MakeRun, make_step: MakeStep) -> None:
    log, run = MetricsLog(), make_run()
    log.start(run)
    log.step(make_step(1), None)
    assert run.run_dir is not None
    assert (run.run_dir / "metrics.jsonl").read_bytes().endswith(b"}\n")
    log.close()


def test_resume_has_neither_duplicates_nor_gaps(write: Write, make_run: MakeRun) -> None:
    write(make_run(), range(1, 8))
    resumed = make_run(start_step=4)
    write(resumed, range(5, 10))
    assert numbers(resumed) == (list(range(1, 10)), [2, 4, 6, 8], list(range(1, 10)))


@pytest.mark.parametrize("kept_bytes", [-1, -5, -40])
def test_resume_after_torn_line_continues_cleanly(
    write: Write, make_run: MakeRun, kept_bytes: int
) -> None:
    run = make_run()
    write(run, range(1, 8))
    assert run.run_dir is not None
    for name in ("metrics.jsonl", "routing.jsonl"):
        path = run.run_dir / name
        path.write_bytes(path.read_bytes()[:kept_bytes])
    resumed = make_run(start_step=6)
    write(resumed, range(7, 9))
    assert numbers(resumed) == (list(range(1, 9)), [2, 4, 6, 8], list(range(1, 9)))


def test_resume_beyond_the_last_record_warns_of_the_gap(
    write: Write, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    write(make_run(), range(1, 4))
    write(make_run(start_step=5), range(6, 7))
    assert "metrics.jsonl ends at step 3, but the run resumes after step 5" in caplog.text


def test_new_run_sets_an_earlier_file_aside(
    write: Write, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    write(run, range(1, 4))
    write(run, range(1, 2))
    assert numbers(run) == ([1], [], [1])
    assert run.run_dir is not None
    assert len((run.run_dir / "routing.old.jsonl").read_text().splitlines()) == 3
    assert "belongs to an earlier run; it is kept as metrics.old.jsonl" in caplog.text


def test_without_run_dir_nothing_is_written(
    write: Write, make_run: MakeRun, tmp_path: Path
) -> None:
    write(make_run(run_dir=None), range(1, 3))
    assert not list(tmp_path.iterdir())


def test_torn_last_line_is_skipped_with_a_warning(
    write: Write, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    write(run, range(1, 4))
    assert run.run_dir is not None
    path = run.run_dir / "routing.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [snapshot.step for snapshot in read_routing(path)] == [1, 2]
    assert "routing.jsonl:3: ignoring a half-written last line" in caplog.text


def test_malformed_lines_name_file_and_line(write: Write, make_run: MakeRun) -> None:
    run = make_run()
    write(run, range(1, 4))
    assert run.run_dir is not None
    path = run.run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not valid JSON .* remove that line"):
        list(read_metrics(path))
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not valid JSON"):
        rewind(path, 2)
    path.write_text(lines[0] + '{"kind": "note"}\n')
    with pytest.raises(DataError, match=r':2: expected .* "step" or "eval", got \'note\''):
        list(read_metrics(path))
    with pytest.raises(DataError, match=r':2: expected an object with an integer "step"'):
        rewind(path, 2)
    path.write_text(json.dumps(json.loads(lines[0]) | {"tokens": "many"}) + "\n")
    with pytest.raises(DataError, match=r":1: tokens must be an integer >= 0, got 'many'"):
        list(read_metrics(path))
    with pytest.raises(DataError, match="no such file; a training run writes it"):
        list(read_routing(run.run_dir / "other.jsonl"))


def test_open_file_is_rewound_and_goes_on(make_run: MakeRun, make_step: MakeStep) -> None:
    run, log = make_run(), MetricsLog()
    log.start(run)
    for step in (1, 2, 3):
        log.step(make_step(step), None)
    log.rewind(replace(run, start_step=1))
    log.step(make_step(2), None)
    log.close()
    assert run.run_dir is not None
    assert [record.step for record in read_metrics(run.run_dir / "metrics.jsonl")] == [1, 2]


def test_failed_rewind_leaves_the_file(write: Write, make_run: MakeRun) -> None:
    run = make_run()
    write(run, range(1, 4))
    assert run.run_dir is not None
    path = run.run_dir / "routing.jsonl"
    content = path.read_bytes() + b"[]\n"
    path.write_bytes(content)
    with pytest.raises(DataError):
        rewind(path, 1)
    assert path.read_bytes() == content
    assert sorted(file.name for file in run.run_dir.iterdir()) == ["metrics.jsonl", "routing.jsonl"]

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.jsonl import read_metrics, read_routing
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.viz.condensed import (
    RunningMean,
    StepColumns,
    load_metrics,
    load_routing,
    recorded_routing,
)

MakeRunDir = Callable[..., Path]


class Steps:
    """Remembers which steps were merged into it."""

    def __init__(self, step: int) -> None:
        self.steps = [step]

    def merge(self, other: "Steps") -> None:
        self.steps += other.steps


@pytest.mark.parametrize("count", [1, 8, 9, 100, 1000])
@pytest.mark.parametrize("first", [1, 777])
def test_step_columns_keep_every_step_once_in_aligned_ranges(count: int, first: int) -> None:
    columns: StepColumns[Steps] = StepColumns(max_columns=8)
    for step in range(first, first + count):
        columns.add(step, Steps(step))
    ranges = [column.steps for column in columns]
    assert [step for steps in ranges for step in steps] == list(range(first, first + count))
    assert len(columns) <= 8
    for steps in ranges:
        assert {(step - 1) // columns.width for step in steps} == {(steps[0] - 1) // columns.width}
    assert columns.width == 1 or count / columns.width > 3  # no coarser than needed


def test_running_mean_leaves_out_what_is_not_finite() -> None:
    mean = RunningMean()
    assert math.isnan(mean.mean)
    for value in (1.0, None, math.nan, 3.0, math.inf):
        mean.add(value)
    assert (mean.mean, mean.low, mean.high) == (2.0, 1.0, 3.0)


def test_load_condenses_long_runs_without_losing_counts(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir(501)
    columns = load_routing(run_dir / "routing.jsonl")
    assert len(columns) <= 200
    assert sum(it.steps for it in columns) == 501
    assert sum(it.tokens for it in columns) == 501 * 40
    metrics = load_metrics(run_dir / "metrics.jsonl")
    assert sum(column.loss.count for column in metrics.columns) == 501


def test_empty_files_say_what_to_run(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir()
    for name, load in (("metrics.jsonl", load_metrics), ("routing.jsonl", load_routing)):
        (run_dir / name).write_text("")
        with pytest.raises(DataError, match=rf"{name}: has no .* \(moe-megatron train\)"):
            load(run_dir / name)


def test_history_takes_the_place_of_a_missing_routing_log(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir(steps=40, lost=3)
    assert recorded_routing(run_dir) == run_dir / "routing.jsonl"
    expected = list(load_routing(run_dir / "routing.jsonl"))
    snapshots = list(read_routing(run_dir / "routing.jsonl"))
    sink = HistorySink(run_dir / "history")
    sink.start(
        RunInfo(
            run_dir=run_dir,
            total_steps=40,
            start_step=0,
            num_layers=3,
            num_experts=4,
            top_k=1,
            world_size=1,
            layers=snapshots[0].layers,
            description="",
        )
    )
    record = next(r for r in read_metrics(run_dir / "metrics.jsonl") if isinstance(r, StepRecord))
    for snapshot in snapshots:
        sink.step(record, snapshot)
    sink.close()
    (run_dir / "routing.jsonl").unlink()
    recorded = recorded_routing(run_dir)
    assert recorded == run_dir / "history"
    for mine, theirs in zip(load_routing(recorded), expected, strict=True):
        assert np.array_equal(mine.tokens_per_expert, theirs.tokens_per_expert)
        assert list(mine.per_layer) == ["entropy", "aux_loss", "z_loss"]
        for name, values in mine.per_layer.items():
            assert np.array_equal(values, theirs.per_layer[name], equal_nan=True)
        assert (mine.first_step, mine.last_step) == (theirs.first_step, theirs.last_step)


def test_metrics_of_evaluations_alone_are_not_enough(make_run_dir: MakeRunDir) -> None:
    path = make_run_dir() / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[-1])
    with pytest.raises(DataError, match="has no step record"):
        load_metrics(path)

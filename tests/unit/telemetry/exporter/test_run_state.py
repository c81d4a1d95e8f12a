"""The state of a run between the thread that records and those that scrape."""

import math

import numpy as np
import pytest

from moe_megatron.telemetry.exporter.run_state import Histograms, RunState
from moe_megatron.telemetry.exporter.run_totals import RunTotals
from moe_megatron.telemetry.values.records import EvalRecord, StepRuntime


def test_histograms_agree_with_counting_one_by_one():
    bounds = (0.0, 0.5, 1.0, 2.0)
    values = np.random.default_rng(3).choice([0.0, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 9.0], (3, 200))
    histograms = Histograms.empty(3, bounds)
    histograms.observe(values[:, :50])
    histograms.observe(values[:, 50:])
    for row, counts, total in zip(values, histograms.counts, histograms.sums, strict=True):
        slow = [int((row <= bound).sum()) for bound in bounds]
        assert counts.cumsum().tolist() == [*slow, 200]
        assert total == pytest.approx(row.sum())


def test_histograms_leave_out_what_is_not_a_number():
    histograms = Histograms.empty(2, (1.0,))
    histograms.observe(np.array([[math.nan, 0.5], [math.nan, math.nan]]))
    assert histograms.counts.tolist() == [[1, 0], [0, 0]]
    assert histograms.sums.tolist() == [0.5, 0.0]


def test_view_is_of_one_step_and_stays(make_run, make_step, make_snapshot):
    state = RunState(make_run())
    state.add_step(make_step(1, step_seconds=0.2), make_snapshot(1))
    view = state.view()
    state.add_step(make_step(2), make_snapshot(2))
    state.add_evaluation(EvalRecord(step=2, split="validation", loss=2.0))
    assert (view.record.step, view.routing.step, view.totals.steps) == (1, 1, 1)
    assert view.step_seconds.counts.sum() == 1
    assert view.loads.counts.sum() == 2 * 4
    assert view.evaluations == {}
    later = state.view()
    assert (later.record.step, later.totals.steps, later.loads.counts.sum()) == (2, 2, 16)
    assert later.evaluations["validation"].loss == 2.0


def test_step_without_routing_keeps_the_last_routing(make_run, make_step, make_snapshot):
    state = RunState(make_run())
    state.add_step(make_step(1), make_snapshot(1))
    state.add_step(make_step(2), None)
    assert state.view().routing.step == 1


def test_phases_add_up(make_run, make_step):
    state = RunState(make_run())
    for step in (1, 2):
        runtime = StepRuntime(
            ended_at=1.0,
            phase_seconds={"data": 0.25, "other": 1.0},
            rank_compute_seconds=np.zeros(1),
            rank_memory_bytes=np.zeros(1),
        )
        state.add_step(make_step(step, runtime=runtime), None)
    seconds = state.view().phase_seconds
    assert (seconds["data"], seconds["other"], seconds["optimizer"]) == (0.5, 2.0, 0.0)


def test_steps_that_never_arrived_are_counted(make_run, make_step):
    state = RunState(make_run(start_step=10))
    for step in (11, 12, 15):
        state.add_step(make_step(step), None)
    assert state.view().missed_steps == 2


def test_resumed_run_waits_until_it_has_caught_up(make_run, make_step, make_snapshot):
    snapshots = {step: make_snapshot(step) for step in range(1, 7)}
    checkpoint, logs = RunTotals.empty(2, 4), RunTotals.empty(2, 4)
    for step in range(1, 6):
        for totals in (checkpoint, logs) if step <= 2 else (logs,):
            totals.add_step(make_step(step))
            totals.add_routing(snapshots[step])
    state = RunState(make_run(start_step=2), checkpoint, logs)
    seen = [state.view().totals.steps]
    for step in range(3, 7):
        state.add_step(make_step(step), snapshots[step])
        seen.append(state.view().totals.steps)
    assert seen == [5, 5, 5, 5, 6]
    assert checkpoint.steps == 2  # the caller's sums are left alone
    expected = sum(s.tokens_per_expert for s in snapshots.values())
    assert (state.view().totals.routed == expected).all()

"""Sums that a resumed run continues without ever going back."""

import math

import numpy as np

from moe_megatron.telemetry.exporter.run_totals import RunTotals
from moe_megatron.telemetry.values.profile import RoutingProfile


def test_steps_are_summed_exactly(make_step, make_snapshot):
    totals = RunTotals.empty(2, 4)
    totals.add_step(make_step(1, tokens=7))
    totals.add_step(make_step(2, tokens=8, skipped=True, grad_norm=math.inf))
    totals.add_step(make_step(3, tokens=9, loss=math.nan, grad_norm=None))
    snapshots = [make_snapshot(step) for step in (1, 2, 3)]
    totals.add_routing(snapshots[0])
    totals.add_routing(RoutingProfile.from_snapshots(snapshots[1:]))
    assert (totals.steps, totals.tokens, totals.skipped) == (3, 24, 1)
    assert totals.nonfinite == {"loss": 1, "gradient": 1}
    assert (totals.routed == sum(s.tokens_per_expert for s in snapshots)).all()
    assert (totals.dropped == sum(s.dropped for s in snapshots)).all()


def test_published_sums_are_never_taken_back(make_step):
    published, now = RunTotals.empty(1, 2), RunTotals.empty(1, 2)
    for step in range(5):
        published.add_step(make_step(step, tokens=10))
    published.routed[:] = [[9, 1]]
    now.add_step(make_step(1, tokens=100))
    now.routed[:] = [[3, 7]]
    shown = now.at_least(published)
    assert (shown.steps, shown.tokens) == (5, 100)
    assert shown.routed.tolist() == [[9, 7]]
    assert now.steps == 1


def test_copy_does_not_follow():
    totals = RunTotals.empty(1, 2)
    copied = totals.copy()
    totals.routed += np.int64(5)
    assert copied.routed.sum() == 0

"""What is a spike: by formula, and never by a loss that is one itself."""

import math
import statistics
from pathlib import Path

import pytest

from moe_megatron.mcore.recovery.policy import Action, Step
from moe_megatron.mcore.recovery.spikes import LossSpikes

LOSSES = [2.0, 2.1, 1.9, 2.05, 1.95]


def step(loss: float | None) -> Step:
    return Step(number=1, repeats=0, loss=loss, grad_norm=1.0)


def policy() -> LossSpikes:
    spikes = LossSpikes("rollback", window=len(LOSSES), deviations=4.0)
    assert [spikes.judge(step(loss)) for loss in LOSSES] == [None] * len(LOSSES)
    return spikes


def test_limit_is_median_plus_deviations() -> None:
    deviation = 1.4826 * statistics.median(abs(loss - 2.0) for loss in LOSSES)
    assert policy().judge(step(2.0 + 3.99 * deviation)) is None
    answer = policy().judge(step(2.0 + 4.01 * deviation))
    assert answer is not None
    assert answer.action is Action.ROLL_BACK
    assert answer.reason == "loss 2.2973 is above 2.2965, 4 deviations"


def test_spike_does_not_raise_the_limit() -> None:
    spikes = policy()
    assert all(spikes.judge(step(9.0)) is not None for _ in range(20))
    assert spikes.judge(step(2.0)) is None


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_unknown_or_infinite_loss_is_not_judged(loss: float | None) -> None:
    spikes = policy()
    assert spikes.judge(step(loss)) is None
    assert spikes.judge(step(9.0)) is not None, "and not compared with"


def test_nothing_is_a_spike_before_the_window_is_full_or_without_noise() -> None:
    spikes = LossSpikes("skip", window=3, deviations=1.0)
    assert [spikes.judge(step(loss)) for loss in (1.0, 50.0, 1.0)] == [None] * 3
    constant = LossSpikes("skip", window=3, deviations=1.0)
    assert [constant.judge(step(loss)) for loss in (1.0, 1.0, 1.0, 2.0)] == [None] * 4


def test_window_begins_anew_after_a_rollback() -> None:
    spikes = policy()
    spikes.on_rolled_back(Path("iter_0000001"), 1)
    assert spikes.judge(step(9.0)) is None

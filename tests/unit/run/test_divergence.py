"""A run whose last steps were not finite is named as diverged."""

import math

import pytest

from moe_megatron.run.divergence import divergence
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import StepRecord


def history(*steps: tuple[float | None, float | None]) -> History:
    return History(
        steps=[
            StepRecord(
                step=number,
                loss=loss,
                learning_rate=10.0,
                grad_norm=grad_norm,
                step_seconds=1.0,
                tokens=10,
                total_steps=len(steps),
                skipped=grad_norm != 1.0,
            )
            for number, (loss, grad_norm) in enumerate(steps, start=1)
        ]
    )


GOOD, SKIPPED, NAN = (3.0, 1.0), (3.0, math.nan), (math.nan, 1.0)
SCALED = (3.0, None)  # the loss scale of fp16 was too large
DISLIKED = (3.0, 200.0)  # skipped by a policy


@pytest.mark.parametrize(
    "steps", [[GOOD, GOOD, NAN, SKIPPED, NAN], [GOOD, GOOD, SKIPPED, SKIPPED, SKIPPED]]
)
def test_the_step_from_which_nothing_was_finite_is_named(steps: list[tuple[float, float]]) -> None:
    assert divergence(history(*steps)) == (
        "the loss or its gradients stopped being finite at step 3 and did not recover, so the "
        "training has diverged; lower the learning rate (its peak was 10, try 0.001), lengthen the "
        "warmup, or look at the text of that step."
    )


def test_a_short_run_without_a_good_step_has_diverged() -> None:
    assert "at step 1 and did not recover" in divergence(history(NAN))


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [GOOD],
        [NAN, NAN, NAN, GOOD],
        [GOOD, GOOD, GOOD, SKIPPED],
        [SCALED] * 5,
        [GOOD, DISLIKED, DISLIKED, DISLIKED],
    ],
)
def test_a_run_that_recovers_is_sound(steps: list[tuple[float, float]]) -> None:
    assert divergence(history(*steps)) == ""

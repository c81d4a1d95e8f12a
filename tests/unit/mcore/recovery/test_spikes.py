"""What is a spike: by formula, and never by a loss that is one itself."""

import math
import statistics
from pathlib import Path

import pytest

from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.errors import CheckpointError
from moe_megatron.mcore.recovery.policy import Action, Step
from moe_megatron.mcore.recovery.recent_losses import LOSSES_FILE, read_losses, write_losses
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


def test_run_that_goes_on_from_a_checkpoint_compares_with_the_losses_before_it(
    tmp_path: Path,
) -> None:
    folder = iteration_dir(tmp_path, 4)
    given = {"window": len(LOSSES), "deviations": 4.0, "checkpoints": tmp_path}
    spikes = LossSpikes("rollback", **given)
    assert [spikes.judge(step(loss)) for loss in LOSSES] == [None] * len(LOSSES)
    spikes.on_checkpoint_end(4)
    assert [spikes.judge(step(2.2)) for _ in LOSSES] == [None] * len(LOSSES)
    resumed = LossSpikes("rollback", **given, loaded=folder)
    resumed.on_train_start([], 4)
    spikes.on_rolled_back(folder, 4)
    for judge in (resumed.judge, spikes.judge):
        answer = judge(step(9.0))
        assert answer is not None
        assert answer.reason == "loss 9.0000 is above 2.2965, 4 deviations"


def test_window_is_empty_at_step_0_and_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    write_losses(tmp_path, LOSSES)
    spikes = LossSpikes("skip", window=len(LOSSES), deviations=4.0, loaded=tmp_path)
    spikes.on_train_start([], 0)
    assert spikes.judge(step(9.0)) is None
    spikes = policy()
    spikes.on_rolled_back(tmp_path / "without", 1)
    assert spikes.judge(step(9.0)) is None


def test_damaged_losses_are_refused(tmp_path: Path) -> None:
    (tmp_path / LOSSES_FILE).write_text('{"loss": 1}')
    with pytest.raises(CheckpointError, match=r"is not a list of losses .* Resume from another"):
        read_losses(tmp_path)

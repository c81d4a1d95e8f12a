"""When a rank hangs, for ft_launcher and for restarts in processes."""

import math

import pytest

from moe_megatron.config import RecoveryConfig
from moe_megatron.run.attempts import timeouts
from moe_megatron.run.restarting import limits


def test_monitors_are_later_than_the_watchdog_and_patient_with_checkpoints() -> None:
    found = timeouts(RecoveryConfig(restart="ft_launcher", hang_seconds=20.0, setup_seconds=50.0))
    assert found.sections == {"setup": 50.0, "step": 30.0, "checkpointing": 300.0}
    assert found.outside == 300.0
    usual = timeouts(RecoveryConfig(restart="ft_launcher"))
    assert usual.sections == {"setup": 1800.0, "step": 900.0, "checkpointing": 9000.0}


def test_run_that_only_tells_of_hangs_is_ended_in_its_set_up_alone() -> None:
    found = timeouts(RecoveryConfig(restart="ft_launcher", end_hangs=False))
    assert found.sections == {"setup": 1800.0, "step": math.inf, "checkpointing": math.inf}


@pytest.mark.parametrize("seconds", [None, 1.0, 1000.0])
def test_limits_in_processes_follow_each_other_and_leave_time_to_start(
    seconds: float | None,
) -> None:
    soft, hard, barrier = limits(RecoveryConfig(restart="in_process", hang_seconds=seconds))
    assert 1800.0 <= soft < hard < barrier

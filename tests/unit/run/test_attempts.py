"""When a rank hangs, for ft_launcher and for restarts in processes, and what is said of it."""

import math
from pathlib import Path

import pytest

from moe_megatron.config import RecoveryConfig, apply_overrides, load_config
from moe_megatron.platform.death import Death
from moe_megatron.platform.launch import End
from moe_megatron.run.attempts import Attempts, timeouts
from moe_megatron.run.owner import claim
from moe_megatron.run.restarting import limits
from moe_megatron.telemetry.journal import note


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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rank": 1, "step": 5},
            "rank 1 hung, last seen in step 5, and rank 0 was killed by signal 9",
        ),
        ({"rank": None}, "every rank waited for others for too long, and rank 0 was killed"),
    ],
)
def test_rank_that_hung_is_named_before_the_one_that_was_killed(
    fields: dict[str, int | None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = apply_overrides(load_config("test_tiny"), {"run_dir": str(tmp_path / "run")})
    ours = claim(tmp_path / "run")
    attempts = Attempts(
        config=config, program=(), num_processes=2, claim=ours, scratch=tmp_path, debug=False
    )
    note(tmp_path / "run", "hang", **fields)
    end = End(code=137, deaths=(Death(rank=0, exit_code=-9),))
    assert attempts._final_code(end) is None, "the ranks are to be started again"
    assert f"error: {words}" in capsys.readouterr().err

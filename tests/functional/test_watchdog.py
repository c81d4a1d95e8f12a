"""A run that hangs names the rank that does, keeps the stacks of the others, and ends."""

import signal
from pathlib import Path

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import FAULT
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import start_ranks

pytestmark = pytest.mark.distributed


def train(folder: Path, harm: str) -> None:
    from moe_megatron.mcore import world
    from moe_megatron.run.start import Attachments, start
    from moe_megatron.testing.harms import HARMS

    world.join("gloo")
    settings = {
        "training.train_steps": 50,
        "training.eval_interval": None,
        "checkpoint.save_interval": None,
        "parallel.expert_parallel_size": 2,
        "recovery.hang_seconds": 6.0,
        "telemetry.history": False,
        "run_dir": str(folder),
        **split_flags(["--mock-data"]),
    }
    options = {"run_dir": folder} if harm == "stop" else {}
    callbacks = [HARMS[harm](step=3, rank=1, **options)]
    start(
        apply_overrides(load_config("test_tiny"), settings),
        attached=Attachments(callbacks=callbacks),
    )


@pytest.mark.parametrize("harm", [pytest.param("stop", marks=pytest.mark.deep), "stuck"])
def test_rank_that_hangs_is_named_and_the_run_ends(harm: str, tmp_path: Path) -> None:
    with start_ranks(train, tmp_path, harm, world_size=2) as ranks:
        first, second = ranks.wait(120)
    (event,) = [event for event in read_events(tmp_path) if event.kind == "hang"]
    assert event.fields["rank"] == 1
    assert event.fields["seconds"] >= 6.0
    told = first.output + second.output
    assert told.count("the run hangs: no progress for ") == 1, "whoever notices first tells"
    assert ". Rank 1 on " in told
    stacks = (tmp_path / "logs" / "stacks-rank0.txt").read_text()
    assert "train_step" in stacks
    if harm == "stop":
        assert second.exit_code == -signal.SIGKILL
        assert "is stopped or gone, last seen in step" in told
    else:
        assert (event.fields["step"], event.fields["phase"]) == (3, "forward_backward")
        assert "does not wait for others, in step 3 (forward_backward)" in told
        assert (first.exit_code, second.exit_code) == (FAULT, FAULT)
        stuck = (tmp_path / "logs" / "stacks-rank1.txt").read_text()
        assert "harms.py" in stuck

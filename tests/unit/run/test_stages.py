"""Changes of experts by word, and in which order stages are run; the runs are functional tests."""

from pathlib import Path

import pytest

from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.pool_change import Grow
from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.errors import ConfigError
from moe_megatron.run.stages import ChangeAt, train_in_stages


def test_changes_are_read_from_words() -> None:
    grown = ChangeAt.read("200:grow=16", noise=0.1)
    assert (grown.step, grown.change) == (200, Grow(num_experts=16, noise=0.1))
    assert ChangeAt.read("3:keep=2", noise=0.1).change == KeepMostUsed(num_experts=2)
    assert isinstance(ChangeAt.read("3:merge=2").change, MergeLeastUsed)


@pytest.mark.parametrize("text", ["", "200", "200:16", "grow=16", "200:split=16", "x:grow=16"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a change .* as in 200:grow=16"):
        ChangeAt.read(text)


@pytest.mark.parametrize("steps", [[], [0], [10], [5, 5], [6, 3]])
def test_steps_rise_within_the_training(steps: list[int], tmp_path: Path) -> None:
    config = apply_overrides(
        RunConfig(),
        {"training.train_steps": 10, "run_dir": str(tmp_path), "training.warmup_steps": 0},
    )
    changes = [ChangeAt.read(f"{step}:grow=16") for step in steps]
    with pytest.raises(ConfigError, match=r"at rising steps between 0 and training.train_steps"):
        train_in_stages(config, changes, lambda _: 0)


def test_a_stage_that_fails_is_the_last(tmp_path: Path) -> None:
    config = apply_overrides(RunConfig(), {"run_dir": str(tmp_path)})
    launched: list[RunConfig] = []

    def launch(stage: RunConfig) -> int:
        launched.append(stage)
        return 3

    changes = [ChangeAt.read("5:grow=16")]
    code, folders = train_in_stages(config, changes, launch, say=lambda _: None)
    assert (code, folders) == (3, [tmp_path / "1-8-experts"])
    assert launched[0].megatron == {"exit-interval": 5}
    assert launched[0].checkpoint.save_interval is not None

"""Deterministic runs use deterministic operations only, repeat bit for bit, and leave no trace."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import ConfigError
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.environment import prepare_environment
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import run_distributed

pytestmark = pytest.mark.distributed

SETTINGS: dict[str, Any] = {
    "training.train_steps": 5,
    "training.warmup_steps": 1,
    "training.eval_interval": None,
    "training.deterministic": True,
    "parallel.expert_parallel_size": 2,
    "checkpoint.save_interval": None,
    "telemetry.history": False,
    "telemetry.console": False,
    **split_flags(["--mock-data", "--hidden-dropout", "0.1"]),
}


class Witness(Callback):
    def __init__(self) -> None:
        self.seen: set[bool] = set()
        self.weights: list[torch.Tensor] = []

    def on_step_start(self, step: int) -> None:
        self.seen.add(torch.are_deterministic_algorithms_enabled())

    def on_train_end(self, model: list[Any]) -> None:
        self.weights = [p.detach().clone() for chunk in model for p in chunk.parameters()]


def train_twice(folder: Path) -> bool:
    """Whether both runs end with the same weights on this rank."""
    from moe_megatron.mcore import world
    from moe_megatron.run.start import Attachments, start

    witnesses = [Witness(), Witness()]
    world.join("gloo")
    for name, witness in zip("ab", witnesses, strict=True):
        given = {**SETTINGS, "run_dir": str(folder / name)}
        config = apply_overrides(load_config("test_tiny"), given)
        start(config, attached=Attachments(callbacks=[witness]))
        assert not torch.are_deterministic_algorithms_enabled(), "only as long as the run"
        assert witness.seen == {True}
    assert os.environ["NCCL_ALGO"] == "Ring"
    world.leave()
    pairs = zip(*(witness.weights for witness in witnesses), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_two_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    assert run_distributed(train_twice, tmp_path, world_size=2) == [True, True]
    a, b = (
        [it.loss for it in read_metrics(tmp_path / name / METRICS_FILE) if type(it) is StepRecord]
        for name in "ab"
    )
    assert len(a) == 5
    assert a == b


def test_environment_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    config = apply_overrides(load_config("test_tiny"), {"training.deterministic": True})
    with pytest.raises(ConfigError, match=r"training.deterministic does not fit .*'Tree'.*Unset"):
        prepare_environment(config)

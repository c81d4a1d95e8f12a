"""A way to fine-tune that only this file knows: routers are trained on, everything else stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import Attachments, start
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.testing.distributed import run_distributed

pytestmark = pytest.mark.distributed

# --- the method: all that its author writes ------------------------------------------------------


def routers_only() -> Attachments:
    """Train nothing but the weights of the routers."""

    def freeze(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                parameter.requires_grad = ".router." in name
        return chunks

    return Attachments(model_hooks=(freeze,))


# --- the runs ------------------------------------------------------------------------------------

STEPS = 3
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.precision": "fp32",
    "training.weight_decay": 0.1,
    "telemetry.console": False,
    "checkpoint.save_interval": STEPS,
    "parallel.expert_parallel_size": 2,
}


class Weights(Callback):
    """Keeps this rank's weights, before the first step and after each."""

    def __init__(self) -> None:
        self.model: list[torch.nn.Module] = []
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self.model = model
        self._look()

    def on_step_end(self, event: StepEnd) -> None:
        self._look()

    def _look(self) -> None:
        named = self.model[0].named_parameters()
        self.seen.append({name: value.detach().clone() for name, value in named})


def tune(folder: Path) -> tuple[set[str], set[str], int]:
    """On every rank: train, then tune from the checkpoint.

    Returns:
        Weights that tuning changed, those that it did not, and steps that the checkpoint was old.
    """
    from moe_megatron.mcore import world

    data = PreparedData(paths=(), cache=folder / "mock", vocab_size=512, end_of_document=0)
    base = apply_overrides(load_config("test_tiny"), {**SHAPE, "run_dir": str(folder / "base")})
    before = Weights()
    result = start(base, data=data, attached=Attachments(callbacks=(before,)))
    tuned = apply_overrides(
        base,
        {
            "run_dir": str(folder / "tuned"),
            "checkpoint.load": str(folder / "base" / "checkpoints"),
            "megatron.finetune": True,
        },
    )
    after = Weights()
    start(tuned, data=data, attached=replace(routers_only(), callbacks=(after,)))
    world.leave()
    first, last = after.seen[0], after.seen[-1]
    assert all(torch.equal(first[name], value) for name, value in before.seen[-1].items())
    changed = {name for name, value in first.items() if not torch.equal(value, last[name])}
    return changed, first.keys() - changed, result.outcome.steps


def test_a_method_is_a_function_that_gives_attachments(tmp_path: Path) -> None:
    for changed, kept, steps in run_distributed(tune, tmp_path, world_size=2):
        assert steps == STEPS
        assert len(changed) == 2
        assert all(name.endswith("mlp.router.weight") for name in changed)
        assert any(".experts." in name for name in kept)
        assert not any(".router." in name for name in kept)
    losses = [record.loss for record in read_metrics(tmp_path / "tuned" / METRICS_FILE)]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()

"""Frozen experts in four bits: less memory, alike under every layout, whole in checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.mcore.tuning.adapters.nf4 import Nf4
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_job, step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.deep]

SHAPE: dict[str, Any] = {
    "training.train_steps": 4,
    "training.warmup_steps": 0,
    "training.learning_rate": 0.01,
    "training.decay_style": "constant",
    "training.weight_decay": 0.0,
    "training.precision": "fp32",
    "telemetry.console": False,
    "checkpoint.save_interval": 2,
    "adapter.rank": 4,
}
NF4 = {"adapter.frozen_experts": "nf4"}
EP2 = {"parallel.expert_parallel_size": 2}
TP2 = {"parallel.tensor_parallel_size": 2, "parallel.expert_tensor_parallel_size": 1}
MATRICES = ("decoder.layers.mlp.experts.experts.linear_fc1.weight",)


class Sizes(Policy):
    """Bytes of this rank's parameters while it trains."""

    def __init__(self) -> None:
        self.bytes = 0

    def on_step_start(self, step: int) -> None:
        tensors = [it for chunk in self._model for it in chunk.parameters()]
        self.bytes = sum(it.numel() * it.element_size() for it in tensors)

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self._model = model


def losses(run_dir: Path) -> list[float]:
    return [it.loss for it in step_records(run_dir)]


def run(root: Path, layouts: dict[str, dict[str, Any]]) -> dict[str, int]:
    """On every rank: a run under each layout, and one that goes on."""
    from moe_megatron.mcore import world

    found = {}
    for name, fields in layouts.items():
        sizes = Sizes()
        run_job(Job(run_dir=root / name, overrides={**SHAPE, **fields}), (sizes,))
        found[name] = sizes.bytes
    half = {**NF4, "megatron.exit-interval": 2}
    run_job(Job(run_dir=root / "parts", overrides={**SHAPE, **half}))
    load = {**NF4, "checkpoint.load": str(root / "parts" / "checkpoints")}
    run_job(Job(run_dir=root / "parts", overrides={**SHAPE, **load}))
    world.leave()
    return found


def test_runs_with_experts_in_four_bits(tmp_path: Path) -> None:
    layouts = {"plain": {}, "nf4": NF4, "ep2": {**NF4, **EP2}, "tp2": {**NF4, **TP2}}
    sizes, _ = run_distributed(run, tmp_path, layouts, world_size=2)
    plain, nf4 = losses(tmp_path / "plain"), losses(tmp_path / "nf4")
    assert nf4[0] != plain[0]
    assert nf4 == pytest.approx(plain, abs=0.05)
    for name in ("ep2", "tp2", "parts"):
        assert losses(tmp_path / name) == pytest.approx(nf4, abs=1e-5), name
    experts = 2 * 4 * (128 + 64) * 64 * 4
    assert sizes["plain"] - sizes["nf4"] == experts
    whole, rounded = (
        whole_tensors(iteration_dir(tmp_path / it / "checkpoints", 4)) for it in ("plain", "ep2")
    )
    assert whole.keys() == rounded.keys()
    for key in MATRICES:
        for matrix, four_bits in zip(
            whole[key].flatten(0, 1), rounded[key].flatten(0, 1), strict=True
        ):
            assert torch.equal(Nf4.of(matrix).matrix(), four_bits), key

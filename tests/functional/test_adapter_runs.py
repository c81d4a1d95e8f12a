"""Runs with adapters begin on a base, go on under other layouts, and move what was used alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_job, step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed]

SHAPE: dict[str, Any] = {
    "training.train_steps": 4,
    "training.warmup_steps": 0,
    "training.learning_rate": 0.01,
    "training.decay_style": "constant",
    "training.weight_decay": 0.0,
    "training.precision": "fp32",
    "telemetry.console": False,
    "checkpoint.save_interval": 4,
}
EP2 = {"parallel.expert_parallel_size": 2}
TP2 = {"parallel.tensor_parallel_size": 2}
PP2 = {"parallel.pipeline_parallel_size": 2}
KINDS: dict[str, dict[str, Any]] = {
    "own": {"adapter.rank": 4, "adapter.ranks": ["experts@2:0=2"]},
    "shared": {"adapter.rank": 4, "adapter.experts": "shared", "adapter.magnitude": True},
}


def losses(run_dir: Path) -> list[float]:
    return [it.loss for it in step_records(run_dir)]


def go_on(root: Path, kind: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> None:
    """On every rank: a run in one piece, and one in two under different layouts."""
    from moe_megatron.mcore import world

    run_job(Job(run_dir=root / "whole", overrides={**SHAPE, **kind, **second}))
    half = {"checkpoint.save_interval": 2, "megatron.exit-interval": 2}
    run_job(Job(run_dir=root / "parts", overrides={**SHAPE, **kind, **first, **half}))
    load = {"checkpoint.load": str(root / "parts" / "checkpoints")}
    run_job(Job(run_dir=root / "parts", overrides={**SHAPE, **kind, **second, **load}))
    world.leave()


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", [TP2, PP2], ids=["tp2", "pp2"])
def test_run_saved_under_ep2_goes_on_under(kind: str, second: dict[str, Any], tmp_path: Path):
    run_distributed(go_on, tmp_path, KINDS[kind], EP2, second, world_size=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert losses(parts)[-2:] == pytest.approx(losses(whole)[-2:], abs=1e-5)
    one, two = (whole_tensors(iteration_dir(it / "checkpoints", 4)) for it in (whole, parts))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if is_of_adapter(key):
            assert float((tensor - two[key]).abs().mean()) < 2e-5, key


def on_base(root: Path) -> list[str]:
    """On every rank: adapters on a checkpoint without them; what is said to runs that lose them."""
    from moe_megatron.mcore import world

    run_job(Job(run_dir=root / "base", overrides={**SHAPE, **EP2}))
    load = {"checkpoint.load": str(root / "base" / "checkpoints"), "megatron.finetune": True}
    run_job(Job(run_dir=root / "plain", overrides={**SHAPE, **EP2, **load}))
    for name, kind in KINDS.items():
        run_job(Job(run_dir=root / name, overrides={**SHAPE, **EP2, **load, **kind}))
    said = []
    load["checkpoint.load"] = str(root / "own" / "checkpoints")
    for kind in ({}, {"adapter.rank": 8}, {**KINDS["own"], "adapter.alpha": 1.0}):
        try:
            run_job(Job(run_dir=root / "no", overrides={**SHAPE, **EP2, **load, **kind}))
        except CheckpointError as error:
            said.append(str(error))
    world.leave()
    return said


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_adapters_begin_on_a_base_and_are_not_lost(tmp_path: Path) -> None:
    said, _ = run_distributed(on_base, tmp_path, world_size=2)
    first = losses(tmp_path / "plain")[0]
    base = whole_tensors(iteration_dir(tmp_path / "base" / "checkpoints", 4))
    for name in KINDS:
        assert losses(tmp_path / name)[0] == first, name
        tuned = whole_tensors(iteration_dir(tmp_path / name / "checkpoints", 4))
        for key, tensor in base.items():
            if not key.startswith("optimizer") and tensor.is_floating_point():
                assert torch.equal(tuned[key], tensor), (name, key)
        assert all(it.any() for key, it in tuned.items() if key.endswith("lora_B")), name
        states = {key for key in tuned if key.startswith("optimizer.state.")}
        assert states
        assert all(map(is_of_adapter, states))
    none, rank, alpha = said
    assert "holds adapters, which this run would leave out or change: adapter.rank is 4" in none
    assert "adapter.rank is 4 there and 8 here" in rank
    assert "adapter.alpha is 16.0 there and 1.0 here" in alpha


class Dropped(Policy):
    """Whether adapters drop inputs in training and in evaluation."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_train_end(self, model: list[Any]) -> None:
        from megatron.core.utils import unwrap_model

        from moe_megatron.mcore.tuning.adapters.attach import updates_of

        chunks = unwrap_model(model)
        for training in (True, False):
            for chunk in chunks:
                chunk.train(training)
            for update in updates_of(chunks):
                inputs = torch.ones(4, 64)
                self.found.append(torch.equal(update._dropped(inputs), inputs) is not training)


def use_some(root: Path) -> tuple[list[bool], str]:
    """On a rank: a run in which some experts get no tokens; one with dropout; a rank too large."""
    from moe_megatron.mcore import world

    few = {
        "moe.num_experts": 16,
        "moe.top_k": 1,
        "moe.router.pre_softmax": True,
        "data.sequence_length": 8,
        "training.global_batch_size": 1,
        "adapter.rank": 2,
        "adapter.targets": ["experts"],
    }
    run_job(Job(run_dir=root / "few", overrides={**SHAPE, **few}))
    dropped = Dropped()
    dropout = {
        "adapter.rank": 2,
        "adapter.dropout": 0.5,
        "finetune.attention_learning_rate": 1e-12,
    }
    run_job(Job(run_dir=root / "dropout", overrides={**SHAPE, **dropout}), (dropped,))
    said = ""
    try:
        run_job(Job(run_dir=root / "large", overrides={**SHAPE, "adapter.rank": 65}))
    except ConfigError as error:
        said = str(error)
    world.leave()
    return dropped.found, said


def test_adapters_of_used_experts_move_alone(tmp_path: Path) -> None:
    ((dropped, said),) = run_distributed(use_some, tmp_path, world_size=1)
    folder = iteration_dir(tmp_path / "few" / "checkpoints", 4)
    tensors = whole_tensors(folder)
    profile = RoutingProfile.load(folder / PROFILE_FILE)
    assert (profile.tokens_per_expert == 0).any()
    for layer, counts in enumerate(profile.tokens_per_expert):
        for expert, tokens in enumerate(counts):
            for matrix in ("linear_fc1", "linear_fc2"):
                name = f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}.{matrix}"
                moments = tensors[f"optimizer.state.exp_avg.{name}.lora_A"]
                assert bool(tensors[f"{name}.lora_B"].any()) == (tokens > 0), name
                # A moves once B is not zero: from the second step with a token of the expert.
                assert bool(moments.any()) or tokens <= 8, name
                assert tokens > 0 or not moments.any(), name
    tensors = whole_tensors(iteration_dir(tmp_path / "dropout" / "checkpoints", 4))
    moved = dict.fromkeys(("self_attention", "mlp.experts"), 0.0)
    for key, tensor in tensors.items():
        for role in moved:
            if role in key and key.endswith("lora_B") and not key.startswith("optimizer"):
                moved[role] = max(moved[role], float(tensor.abs().max()))
    assert 0 < moved["self_attention"] < 1e-10 < moved["mlp.experts"]
    assert dropped
    assert all(dropped)
    assert "the rank 65 of an adapter is larger than decoder.layers.0." in said

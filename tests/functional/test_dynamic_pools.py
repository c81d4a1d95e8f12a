"""A run goes on with more or fewer experts, and its optimizer with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.pool_change import Change, Grow
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.matrices import read_saved_matrix
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.families.links import Link
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.testing.jobs import Job, run_jobs

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(600)]

STEPS, HALF, EXPERTS, TOP_K = 6, 3, 4, 2
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.precision": "fp32",
    "training.eval_interval": None,
    # Copies share a gradient, so that its norm is another one.
    "training.clip_grad": 0.0,
    "checkpoint.save_interval": HALF,
    "moe.expert": "glu",
}
EP2 = {"parallel.expert_parallel_size": 2}
NOISE = 2e-3
CHANGES: dict[str, tuple[Change, int]] = {
    "doubled": (Grow(num_experts=8), 4),
    "doubled with noise": (Grow(num_experts=8, noise=NOISE), 4),
    "two more": (Grow(num_experts=6), 2),
    "one fewer": (KeepMostUsed(num_experts=3), 2),
    "merged": (MergeLeastUsed(num_experts=3), 2),
}


def resumed(root: Path, name: str, change: str, **more: Any) -> Job:
    wanted, top_k = CHANGES[change]
    sizes = {"moe.num_experts": wanted.num_experts, "moe.top_k": top_k}
    load = {"checkpoint.load": str(root / "changed" / change)}
    return Job(run_dir=root / name, overrides={**SHAPE, **sizes, **load, **more})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end; and from its middle on with each change, in one process and in two."""
    root = tmp_path_factory.mktemp("pools")
    run_jobs([Job(run_dir=root / "as it was", overrides={**SHAPE, **EP2})], world_size=2)
    middle = root / "as it was" / "checkpoints" / f"iter_{HALF:07d}"
    for name, (wanted, _) in CHANGES.items():
        change_experts(middle, root / "changed" / name, wanted)
    jobs = [resumed(root, name, name) for name in CHANGES]
    forgetful = {"megatron.no-load-optim": True}
    run_jobs([*jobs, resumed(root, "without moments", "doubled", **forgetful)], world_size=1)
    run_jobs([resumed(root, "doubled, apart", "doubled", **EP2)], world_size=2)
    return root


def losses(run: Path) -> list[float]:
    return [it.loss for it in read_metrics(run / METRICS_FILE) if it.loss is not None]


def experts_of(folder: Path, prefix: str = "") -> torch.Tensor:
    """A matrix of every expert of the second layer, [experts, inner, hidden]."""
    key = f"{prefix}decoder.layers.{{layer}}.mlp.experts.experts.gate.weight"
    with TorchDist(folder) as saved:
        _, experts, *shape = saved.tensors[key.replace("{layer}.", "")].shape
        links = (
            Link(key=key, layer=1, expert=number, shape=tuple(shape), blocks=())
            for number in range(experts)
        )
        found = [read_saved_matrix(link, saved) for link in links]
    return torch.stack([it for it in found if it is not None])


@pytest.mark.parametrize("run", ["doubled", "doubled, apart"])
def test_a_doubled_pool_trains_on_as_if_nothing_had_happened(run: str, runs: Path) -> None:
    """Function, gradients and moments are shared by copies, so that every step is the same."""
    before = losses(runs / "as it was")[HALF:]
    assert losses(runs / run) == pytest.approx(before, rel=2e-6)
    forgotten = losses(runs / "without moments")
    assert forgotten[0] == pytest.approx(before[0], rel=2e-6)
    assert forgotten[1] != pytest.approx(before[1], rel=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_the_loss_goes_on_from_where_it_was(change: str, runs: Path) -> None:
    before, after = losses(runs / "as it was"), losses(runs / change)
    assert len(after) == STEPS - HALF
    fell = before[0] - before[HALF]
    bound = {"doubled": 2e-6, "doubled with noise": 2e-4}.get(change, 0.02)
    assert after[0] == pytest.approx(before[HALF], rel=bound)
    assert before[0] - after[0] > 0.5 * fell  # what was learned is still there
    assert after[-1] < after[0]


@pytest.mark.parametrize("change", CHANGES)
def test_its_tokens_are_counted(change: str, runs: Path) -> None:
    wanted, top_k = CHANGES[change]
    for snapshot in read_routing(runs / change / ROUTING_FILE):
        assert snapshot.tokens_per_expert.shape == (2, wanted.num_experts)
        assert (snapshot.tokens_per_expert.sum(axis=1) == snapshot.tokens * top_k).all()


def test_noise_makes_copies_differ_and_leaves_their_mean(runs: Path) -> None:
    middle = runs / "as it was" / "checkpoints" / f"iter_{HALF:07d}"
    for prefix in ("", "optimizer.state.param."):
        origin = experts_of(middle, prefix)
        copies = experts_of(runs / "changed" / "doubled with noise", prefix)
        first, second = copies[::2], copies[1::2]
        torch.testing.assert_close((first + second) / 2, origin, rtol=0, atol=1e-7)
        assert float((first - origin).std()) == pytest.approx(NOISE, rel=0.05)
        assert not torch.equal(first[0] - origin[0], first[1] - origin[1])


ROUTERS = ("noisy_top_k", "zero_computation", "expert_threshold", "cosine")
"""With gates and states of their own."""


@pytest.fixture(scope="module")
def of_routers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose pools of other routers were doubled, and merged."""
    root = tmp_path_factory.mktemp("routers")
    kinds = {name: {**SHAPE, "moe.router": name} for name in ROUTERS}
    run_jobs([Job(run_dir=root / it, overrides=kinds[it]) for it in ROUTERS], world_size=1)
    later = []
    for name, overrides in kinds.items():
        for change in ("doubled", "merged"):
            wanted, top_k = CHANGES[change]
            grown = root / f"{name}, {change}"
            change_experts(root / name / "checkpoints" / f"iter_{HALF:07d}", grown, wanted)
            sizes = {"moe.num_experts": wanted.num_experts, "moe.top_k": top_k}
            load = {"checkpoint.load": str(grown)}
            later.append(Job(run_dir=grown / "run", overrides={**overrides, **sizes, **load}))
    run_jobs(later, world_size=1)
    return root


@pytest.mark.parametrize("change", ["doubled", "merged"])
@pytest.mark.parametrize("router", ROUTERS)
def test_rows_of_gates_and_states_go_with_their_experts(
    router: str, change: str, of_routers: Path
) -> None:
    before, after = losses(of_routers / router), losses(of_routers / f"{router}, {change}" / "run")
    assert len(after) == STEPS - HALF
    assert after[0] == pytest.approx(before[HALF], rel=0.02)


@pytest.mark.parametrize(("moment", "share"), [("exp_avg", 0.5), ("exp_avg_sq", 0.25)])
def test_copies_share_the_moments(moment: str, share: float, runs: Path) -> None:
    prefix = f"optimizer.state.{moment}."
    origin = experts_of(runs / "as it was" / "checkpoints" / f"iter_{HALF:07d}", prefix)
    copies = experts_of(runs / "changed" / "doubled with noise", prefix)
    torch.testing.assert_close(copies, origin.repeat_interleave(2, 0) * share)
    merged = experts_of(runs / "changed" / "merged", prefix)
    torch.testing.assert_close(merged.sum(0), origin.sum(0), rtol=1e-4, atol=1e-10)

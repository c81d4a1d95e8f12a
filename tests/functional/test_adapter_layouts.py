"""Adapters are trained alike under every layout, whatever experts share, and the base stays."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import LATENT, Job, run_job, step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed]

STEPS = 3
SHAPE: dict[str, Any] = {
    "moe.shared_expert_hidden_size": 64,
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.learning_rate": 0.02,
    "training.weight_decay": 0.0,
    "training.precision": "fp32",
    "telemetry.console": False,
    "checkpoint.save_interval": STEPS,
}
EP2 = {"parallel.expert_parallel_size": 2}
TP2 = {"parallel.tensor_parallel_size": 2}
ETP1 = {**TP2, "parallel.expert_tensor_parallel_size": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "ep2": EP2,
    "tp2": TP2,
    "tp2_etp1": ETP1,
    "tp2_ep2_etp1": {**ETP1, **EP2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "ep2_plain_optimizer": {**EP2, "parallel.distributed_optimizer": False},
    "tp2_recomputed": {**TP2, "training.recompute": "full"},
    "pp2_vpp": {
        "parallel.pipeline_parallel_size": 2,
        "parallel.virtual_pipeline_stages": 2,
        "model.num_layers": 4,
    },
    "tp2_latent_attention": {**TP2, **LATENT},
    "ep2_latent_attention": {**EP2, **LATENT},
    "ep2_prediction": {**EP2, "model.num_prediction_layers": 1},
    "cp2": {"parallel.context_parallel_size": 2},
}
OF_FOUR: dict[str, dict[str, Any]] = {
    "tp2_ep2": {**TP2, **EP2},
    "tp2_ep2_etp1": {**ETP1, **EP2},
    "pp2_ep2": {"parallel.pipeline_parallel_size": 2, **EP2},
}
HOW = ("parallel.", "training.recompute")
"""Options that may not change what is computed."""
KINDS: dict[str, dict[str, Any]] = {
    "own": {"adapter.ranks": ["experts@2:0=2", "attention=3"]},
    "shared_a": {"adapter.experts": "shared_a"},
    "shared": {"adapter.experts": "shared"},
    "dora": {"adapter.magnitude": True},
    "dora_shared": {"adapter.magnitude": True, "adapter.experts": "shared"},
    "some": {"adapter.targets": ["experts@2:0"]},
    "with_router": {"finetune.train": ["router"]},
}

RUNS = {name: {"adapter.rank": 4, **fields} for name, fields in KINDS.items()}
EVERY_KIND = ("dp2", "ep2", "tp2", "tp2_etp1", "pp2", "cp2", "tp2_ep2")
"""Layouts that differ in which matrices and which experts a process has."""
FEW_KINDS = ("own", "dora_shared", "with_router")
"""Under the others: ranks by matrix, what experts share, magnitudes, weights beside adapters."""


def named(model: list[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a rank; chunks number their layers alike."""
    for number, chunk in enumerate(model):
        yield from ((f"{number}.{name}", it) for name, it in chunk.named_parameters())


class Watched(Policy):
    """Keeps this rank's weights at the start, and what of them has moved at the end."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.moved: set[str] = set()
        self.states = 0
        self._optimizer: Any = None

    def on_optimizer(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self.first = {name: tensor.detach().clone() for name, tensor in named(model)}

    def on_train_end(self, model: list[Any]) -> None:
        moved = (name for name, it in named(model) if not torch.equal(it, self.first[name]))
        self.moved = set(moved)
        parts = [it.optimizer for it in self._optimizer.chained_optimizers if it.optimizer]
        states = [state for part in parts for state in part.state.values()]
        self.states = sum(state["exp_avg"].numel() for state in states)


def adapt(root: Path, runs: dict[str, dict[str, Any]]) -> dict[str, Watched]:
    """On every rank: the runs, one after the other."""
    from moe_megatron.mcore import world

    found = {}
    for name, overrides in runs.items():
        watched = Watched()
        rank = {"adapter.rank": 4} if any("adapter" in it for it in overrides) else {}
        run_job(Job(run_dir=root / name, overrides={**SHAPE, **rank, **overrides}), (watched,))
        watched._optimizer, watched.first = None, {}
        found[name] = watched
    world.leave()
    return found


def losses(root: Path, name: str) -> list[float]:
    return [it.loss for it in step_records(root / name)]


def saved(root: Path, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    return whole_tensors(iteration_dir(root / name / "checkpoints", step))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What one process trains with some kinds of adapters; layouts of one model share it."""
    trained: dict[str, Path] = {}

    def folder(layout: dict[str, Any], kinds: Iterable[str]) -> Path:
        alike = {key: it for key, it in layout.items() if not key.startswith(HOW)}
        name = repr(sorted(alike.items()))
        if name not in trained:
            trained[name] = tmp_path_factory.mktemp("alone")
        root, wanted = trained[name], {"base": {}, **{it: RUNS[it] for it in kinds}}
        runs = {it: {**alike, **own} for it, own in wanted.items() if not (root / it).exists()}
        if runs:
            run_distributed(adapt, root, runs, world_size=1)
        return root

    return folder


def check(
    root: Path, one: Path, layout: dict[str, Any], kinds: Iterable[str], size: int = 2
) -> None:
    """Train each kind of adapters under a layout, and compare it with one process."""
    many = {it: {**layout, **RUNS[it]} for it in kinds}
    ranks = run_distributed(adapt, root, many, world_size=size)
    base = losses(one, "base")
    for name in kinds:
        ours = losses(one, name)
        assert ours[0] == base[0], name  # adapters change nothing yet
        assert ours[-1] != base[-1], name
        assert losses(root, name) == pytest.approx(ours, abs=1e-5), name
        norms = [[it.grad_norm for it in step_records(at / name)] for at in (one, root)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3), name
        whole, split = (saved(place, name) for place in (one, root))
        for key, tensor in whole.items():
            if is_of_adapter(key) and not key.startswith("optimizer.state.param."):
                # Adam makes large steps of the rounding of gradients that are almost zero.
                assert float((tensor - split[key]).abs().mean()) < 2e-5, (name, key)
        allowed = ("lora_", "router") if "router" in name else ("lora_",)
        for rank in ranks:
            assert all(any(it in moved for it in allowed) for moved in rank[name].moved), name


def test_adapters_of_experts_on_two_ranks_train_as_on_one(
    alone: Callable[..., Path], tmp_path: Path
) -> None:
    kinds = ["shared_a"]
    check(tmp_path, alone(EP2, kinds), EP2, kinds)  # what is shared, and what is not


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_train_alike_under(
    layout: str, alone: Callable[..., Path], tmp_path: Path
) -> None:
    wanted, kinds = LAYOUTS[layout], KINDS if layout in EVERY_KIND else FEW_KINDS
    check(tmp_path, alone(wanted, kinds), wanted, kinds)


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", OF_FOUR)
def test_adapters_train_alike_on_four_ranks_under(
    layout: str, alone: Callable[..., Path], tmp_path: Path
) -> None:
    wanted, kinds = OF_FOUR[layout], KINDS if layout in EVERY_KIND else FEW_KINDS
    check(tmp_path, alone(wanted, kinds), wanted, kinds, size=4)

"""What is frozen stays bit by bit and has no optimizer state, whatever the layout.

Trained weights are the same under every layout, and a selection is resumed by itself alone.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.checkpoint.edit.pool_change import Grow
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.config.parameter_roles import role_of
from moe_megatron.errors import CheckpointError
from moe_megatron.mcore.loop.callbacks import StepEnd
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_job
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed]

STEPS = 3
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.precision": "fp32",
    "training.weight_decay": 0.1,
    "training.decay_style": "constant",
    "training.eval_interval": None,
    "telemetry.console": False,
    "checkpoint.save_interval": STEPS,
}
EP2 = {"parallel.expert_parallel_size": 2}
TP2 = {"parallel.tensor_parallel_size": 2}
PP2 = {"parallel.pipeline_parallel_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": EP2,
    "tp2": TP2,
    "pp2": PP2,
    "ep2_plain": {**EP2, "parallel.distributed_optimizer": False},
    "ep2_bf16": {**EP2, "training.precision": "bf16"},
    "pp2_recomputed": {**PP2, "training.recompute": "full"},
    "tp2_recomputed": {**TP2, "training.recompute": "full"},
}
HOW = ("parallel_size", "recompute")
"""Options that may not change what is computed."""
SELECTIONS: dict[str, list[str]] = {
    "one_expert": ["experts@2:0"],  # one rank of two has nothing to train
    "routers": ["router"],
    "first_layer": ["all@1"],
    "last_layer": ["all@2"],
    "attention": ["*.linear_qkv.weight", "norms"],
    "embeddings": ["embeddings"],
}
FEW = ("one_expert", "first_layer", "attention")
"""Where a process has the same parameters as under another layout, and treats them otherwise."""
FEW_UNDER = ("ep2_plain", "ep2_bf16", "tp2_recomputed")


class Watched(Policy):
    """Keeps this rank's weights at the start, and sizes of its optimizer's state at the end."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.trained: set[str] = set()
        self.moved: set[str] = set()
        self.state = 0
        self._optimizer: Any = None

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        named = [it for chunk in model for it in chunk.named_parameters()]
        self.first = {name: tensor.detach().clone() for name, tensor in named}
        self.trained = {name for name, tensor in named if tensor.requires_grad}

    def on_optimizer(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def on_step_end(self, event: StepEnd) -> None:
        assert event.grad_norm is not None
        assert math.isfinite(event.grad_norm)

    def on_train_end(self, model: list[Any]) -> None:
        named = [it for chunk in model for it in chunk.named_parameters()]
        self.moved = {name for name, it in named if not torch.equal(it, self.first[name])}
        parts = [it.optimizer for it in self._optimizer.chained_optimizers if it.optimizer]
        states = [state for part in parts for state in part.state.values()]
        self.state = sum(state["exp_avg"].numel() for state in states)


def tune(root: Path, runs: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """On every rank: the runs, one after the other; what moved, what was trained, and state."""
    from moe_megatron.mcore import world

    found = {}
    for name, overrides in runs.items():
        watched = Watched()
        run_job(Job(run_dir=root / name, overrides={**SHAPE, **overrides}), (watched,))
        trained = sum(watched.first[it].numel() for it in watched.trained)
        found[name] = (watched.moved, watched.trained, watched.state, trained)
    world.leave()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What one process trains of each selection; layouts of one optimizer and type share it."""
    trained: dict[str, Path] = {}

    def folder(layout: dict[str, Any], names: Iterable[str]) -> Path:
        alike = {key: it for key, it in layout.items() if not key.endswith(HOW)}
        name = repr(sorted(alike.items()))
        if name not in trained:
            trained[name] = tmp_path_factory.mktemp("alone")
        runs = selections(alike, names)
        missing = {it: run for it, run in runs.items() if not (trained[name] / it).exists()}
        if missing:
            run_distributed(tune, trained[name], missing, world_size=1)
        return trained[name]

    return folder


def selections(layout: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {it: {**layout, "finetune.train": SELECTIONS[it]} for it in names}


def check(root: Path, alone: Path, layout: dict[str, Any], names: Iterable[str]) -> None:
    """Train each selection on two ranks under a layout, and check it against one process."""
    ranks = run_distributed(tune, root, selections(layout, names), world_size=2)
    for name in names:
        moved, trained = (set.union(*(rank[name][i] for rank in ranks)) for i in (0, 1))
        assert moved == trained, name
        for rank in ranks:
            assert rank[name][0] <= rank[name][1], name
        one, many = (
            whole_tensors(iteration_dir(place / name / "checkpoints", STEPS))
            for place in (alone, root)
        )
        assert one.keys() == many.keys(), name
        states = sum(it.numel() for key, it in many.items() if ".exp_avg." in key)
        assert states == sum(it.numel() for key, it in one.items() if ".exp_avg." in key)
        if layout.get("parallel.distributed_optimizer", True):
            assert all(rank[name][2] <= rank[name][3] for rank in ranks), name
        for key in one:
            if one[key].is_floating_point() and "rng" not in key:
                tolerance = 2e-2 if "bf16" in str(layout) else 2e-5
                assert torch.allclose(one[key], many[key], atol=tolerance), (name, key)


def test_rank_with_nothing_to_train_does_not_keep_the_other_waiting(tmp_path: Path) -> None:
    runs = {"one": {**EP2, "finetune.train": ["experts@2:0"]}}
    first, second = run_distributed(tune, tmp_path, runs, world_size=2)
    moved, trained, state, numbers = first["one"]
    assert moved == trained
    assert len(trained) == 2
    assert state == numbers
    assert second["one"] == (set(), set(), 0, 0)


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_stays_and_trained_is_the_same_under(
    layout: str, alone: Callable[..., Path], tmp_path: Path
) -> None:
    names = FEW if layout in FEW_UNDER else [*SELECTIONS]
    check(tmp_path, alone(LAYOUTS[layout], names), LAYOUTS[layout], names)


@pytest.mark.deep
def test_experts_of_a_run_that_froze_some_are_not_changed(tmp_path: Path) -> None:
    runs = {"one": {"finetune.train": ["experts@2:0"]}}
    run_distributed(tune, tmp_path, runs, world_size=1)
    with pytest.raises(CheckpointError, match="by a run that froze parameters, whose optimizer"):
        change_experts(tmp_path / "one" / "checkpoints", tmp_path / "grown", Grow(num_experts=8))
    assert not (tmp_path / "grown").exists()


# --- resuming ------------------------------------------------------------------------------------


def resume(root: Path, layouts: list[dict[str, Any]]) -> list[str]:
    """On every rank: a run in one piece, one in two, the second under another layout.

    Returns:
        What is said to a run that goes on with another selection.
    """
    from moe_megatron.mcore import world

    first, second = ({**SHAPE, "finetune.train": ["experts@2:0", "router"], **it} for it in layouts)
    run_job(Job(run_dir=root / "whole", overrides={**second, "training.train_steps": 4}))
    half = {"checkpoint.save_interval": 2, "training.train_steps": 4, "megatron.exit-interval": 2}
    run_job(Job(run_dir=root / "parts", overrides={**first, **half}))
    load = {"checkpoint.load": str(root / "parts" / "checkpoints"), "training.train_steps": 4}
    said = []
    for selection in (["experts@2:0"], ["experts@2:0", "router"]):
        job = Job(
            run_dir=root / "parts",
            overrides={**second, **load, "finetune.train": selection},
        )
        try:
            run_job(job)
        except CheckpointError as error:
            said.append(str(error))
    world.leave()
    return said


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("distributed", [True, False])
def test_selection_is_resumed_by_itself_alone(tmp_path: Path, distributed: bool) -> None:
    kind = {"parallel.distributed_optimizer": distributed}
    layouts = [{**EP2, **kind}, {**(PP2 if distributed else EP2), **kind}]
    for (said,) in run_distributed(resume, tmp_path, layouts, world_size=2):
        assert "finetune.train is ('experts@2:0', 'router') there" in said
        assert "its optimizer holds the state of those parameters that were trained then" in said
    whole, parts = (
        whole_tensors(iteration_dir(tmp_path / name / "checkpoints", 4))
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, parts[key], atol=2e-5), key


# --- learning rates ------------------------------------------------------------------------------


class Rates(Policy):
    """The learning rates of each role's parameters, after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, set[float]]] = []
        self._names: dict[int, str] = {}
        self._groups: list[dict[str, Any]] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self._names = {id(it): name for chunk in model for name, it in chunk.named_parameters()}

    def on_optimizer(self, optimizer: Any) -> None:
        self._groups = optimizer.param_groups

    def on_step_end(self, event: StepEnd) -> None:
        found: dict[str, set[float]] = {}
        for group in self._groups:
            for parameter in group["params"]:
                role = role_of(self._names[id(parameter)])
                found.setdefault(role, set()).add(round(group["lr"], 12))
        self.seen.append(found)


def rates(root: Path) -> list[dict[str, set[float]]]:
    """On a rank: a run whose optimizer has Megatron's own parameters in its groups."""
    from moe_megatron.mcore import world

    seen = Rates()
    overrides = {
        **SHAPE,
        "training.learning_rate": 1e-3,
        "training.min_learning_rate": 1e-4,
        "training.decay_style": "linear",
        "checkpoint.save_interval": None,
        "parallel.distributed_optimizer": False,
        "finetune.freeze": ["embeddings"],
        "finetune.router_learning_rate": "0.1x",
        "finetune.expert_learning_rate": 2e-3,
    }
    run_job(Job(run_dir=root, overrides=overrides), (seen,))
    world.leave()
    return seen.seen


@pytest.mark.deep
def test_roles_keep_their_multiple_of_the_schedule(tmp_path: Path) -> None:
    (seen,) = run_distributed(rates, tmp_path, world_size=1)
    assert len(seen) == STEPS
    for step, found in enumerate(seen):
        base = 1e-3 - (1e-3 - 1e-4) * (step + 1) / STEPS
        assert found.keys() == {"attention", "norms", "router", "experts"}
        for role, times in (("attention", 1), ("norms", 1), ("router", 0.1), ("experts", 2)):
            (rate,) = found[role]
            assert rate == pytest.approx(base * times, rel=1e-6), (step, role)


# --- unfreezing ----------------------------------------------------------------------------------


class Loaded(Policy):
    """What the optimizer knows of each of this rank's parameters when it has been loaded."""

    def __init__(self) -> None:
        self.moments: dict[str, float] = {}
        self.apart: dict[str, float] = {}
        self.rates: list[float] = []
        self._model: list[Any] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self._model = model

    def on_optimizer(self, optimizer: Any) -> None:
        named = {it: name for chunk in self._model for name, it in chunk.named_parameters()}
        for part in optimizer.chained_optimizers:
            for it in part.model_param_group_index_map:
                own = part._get_model_param_range_map(it)["param"]
                held = part._get_main_param_and_optimizer_states(it)
                weights = it.detach().view(-1)[own.start : own.end].float()
                moment = held.get("exp_avg", torch.zeros(1))  # none before the first step
                self.moments[named[it]] = moment.abs().sum().item()
                self.apart[named[it]] = (held["param"] - weights).abs().max().item()

    def on_step_end(self, event: StepEnd) -> None:
        self.rates.append(event.learning_rate or 0.0)


def unfreeze(root: Path) -> list[Any]:
    """On every rank: routers for two steps, then one expert, too, and at last all."""
    from moe_megatron.mcore import world

    found, load = [], None
    stages = (["router"], ["router", "experts@2:0"], ["all"])
    for number, selectors in enumerate(stages, start=1):
        overrides = {
            **SHAPE,
            **EP2,
            "training.precision": "bf16",
            "training.decay_style": "linear",
            "training.train_steps": 6,
            "checkpoint.save_interval": 2,
            "finetune.train": selectors,
            "finetune.reselect": True,
            **({} if number == 3 else {"megatron.exit-interval": 2 * number}),
            **({} if load is None else {"checkpoint.load": load}),
        }
        loaded = Loaded()
        run_job(Job(run_dir=root / str(number), overrides=overrides), (loaded,))
        load = str(root / str(number) / "checkpoints")
        found.append((loaded.moments, loaded.apart, loaded.rates))
    world.leave()
    return found


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_what_is_unfrozen_begins_with_zeros_and_the_rest_goes_on(tmp_path: Path) -> None:
    ranks = run_distributed(unfreeze, tmp_path, world_size=2)
    # Local expert 0 of the second rank is another expert: only the first rank has trained one.
    trained = [{name for rank in ranks for name in rank[stage][0]} for stage in range(3)]
    assert all("router" in name for name in trained[0])
    assert [len(names) for names in trained[:2]] == [2, 4]
    for number, rank in enumerate(ranks):
        for stage in (1, 2):
            moments, apart, _ = rank[stage]
            for name, moment in moments.items():
                before = name in trained[stage - 1] and not (number and ".local_experts." in name)
                assert (moment > 0) == before, (number, stage, name)
                # bf16 holds the exact copy of what was trained with eight bits.
                assert apart[name] == 0 or (before and apart[name] < 1e-2), name
        # The schedule goes on where it was.
        rates = [rate for _, _, seen in rank for rate in seen]
        assert len(rates) == 6
        assert all(one > other for one, other in pairwise(rates))


# --- what routers move without gradients ---------------------------------------------------------

REMEMBERING: dict[str, dict[str, Any]] = {
    "expert bias": {
        "moe.router.score_function": "sigmoid",
        "moe.expert_bias": True,
        "moe.load_balancing": "none",
        "moe.aux_loss_coef": 0,
        "moe.z_loss_coef": 0,
    },
    "a bias of its own": {"moe.router": {"name": "loss_free", "update_rate": 0.05}},
}


class Buffers(Policy):
    """The buffers that checkpoints hold of this rank's routers, at the start and at the end."""

    def __init__(self) -> None:
        self.moved: dict[str, bool] = {}
        self._first: dict[str, torch.Tensor] = {}

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self._first = {name: it.clone() for name, it in self._found(model).items()}

    def on_train_end(self, model: list[Any]) -> None:
        found = self._found(model)
        self.moved = {name: not torch.equal(it, self._first[name]) for name, it in found.items()}

    @staticmethod
    def _found(model: list[Any]) -> dict[str, torch.Tensor]:
        named = [it for chunk in model for it in chunk.named_buffers()]
        kept = ("expert_bias", ".state.")
        return {name: it for name, it in named if any(word in name for word in kept)}


def remember(root: Path) -> dict[str, dict[str, bool]]:
    """On a rank: for each such router, which of its layers' memories have moved."""
    from moe_megatron.mcore import world

    found = {}
    for name, router in REMEMBERING.items():
        seen = Buffers()
        overrides = {**SHAPE, **router, "finetune.freeze": ["router@1"]}
        run_job(Job(run_dir=root / name, overrides=overrides), (seen,))
        found[name] = seen.moved
    world.leave()
    return found


@pytest.mark.deep
def test_frozen_router_keeps_what_it_remembers(tmp_path: Path) -> None:
    (found,) = run_distributed(remember, tmp_path, world_size=1)
    for name, moved in found.items():
        frozen = {it for it in moved if "layers.0." in it}
        assert frozen, name
        assert not any(moved[it] for it in frozen), name
        assert any(moved[it] for it in moved.keys() - frozen), name


@pytest.mark.deep
def test_layers_for_multi_token_prediction_follow_the_decoders(tmp_path: Path) -> None:
    chosen = {"finetune.train": ["router@3", "experts@3:1"], "model.num_prediction_layers": 1}
    for layout, size in ((EP2, 2), ({"training.recompute": "full"}, 1)):
        runs = {"mtp": {**chosen, **layout}}
        ranks = run_distributed(tune, tmp_path / str(size), runs, world_size=size)
        for rank in ranks:
            assert rank["mtp"][0] == rank["mtp"][1]
        trained = {name for rank in ranks for name in rank["mtp"][1]}
        assert all(".mtp.layers.0." in name for name in trained), trained
        assert len(trained) == 3

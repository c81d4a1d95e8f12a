"""A run that loses an expert goes on without it, and can have it back, under every layout."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.config.masked_experts import read_masked
from moe_megatron.errors import RecoveryError
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.recovery.adapted_experts import parameters_of_experts
from moe_megatron.telemetry.journal import Event, read_events
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records

pytestmark = [pytest.mark.deep, pytest.mark.distributed]

STEPS, BAD, LAYER, EXPERT = 6, 3, 2, 1
SETTINGS: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 1,
    "training.micro_batch_size": 2,
    "training.eval_interval": None,
    "checkpoint.save_interval": 2,
    "telemetry.history": False,
    "telemetry.console": False,
    "recovery.expert_failure": "mask",
    **split_flags(["--mock-data"]),
}
EP2 = {"parallel.expert_parallel_size": 2}
TP2 = {"parallel.tensor_parallel_size": 2}
SIGMOID = {
    "moe.expert_bias": True,
    "moe.router": {"name": "top_k", "score_function": "sigmoid"},
    "moe.load_balancing": "none",
}
ADAPTER = {"adapter.rank": 4}


@dataclass(frozen=True)
class Run:
    settings: dict[str, Any] = field(default_factory=dict)
    experts: tuple[int, ...] = (EXPERT,)
    """Experts of the layer that are harmed."""
    gradients: bool = False
    adapter: bool = False
    """Harm its adapter."""
    resumes: str = ""


RUNS = {
    "ep2": Run(EP2),
    "tp2": Run(TP2),
    "ep2_bias": Run({**EP2, **SIGMOID}),
    "bf16_sharded": Run(
        {**EP2, "training.precision": "bf16", "parallel.distributed_optimizer": True}
    ),
    "gradients": Run(EP2, gradients=True),
    "adapter": Run({**EP2, **ADAPTER}, adapter=True),
    "adapter_tp2": Run({**TP2, **ADAPTER}, adapter=True),
    "adapter_gradients": Run({**EP2, **ADAPTER}, gradients=True, adapter=True),
    "adapter_kept": Run(EP2 | ADAPTER, experts=(), resumes="adapter"),
    "adapter_before": Run(
        {**EP2, **ADAPTER, "megatron.ckpt-step": 2}, experts=(), resumes="adapter"
    ),
    "adapter_restored": Run(
        {**EP2, **ADAPTER, "recovery.restore_experts": "restore"}, experts=(), resumes="adapter"
    ),
    "adapter_reinitialized": Run(
        {**EP2, **ADAPTER, "recovery.restore_experts": "reinitialize"},
        experts=(),
        resumes="adapter",
    ),
    "too_many": Run(EP2, experts=(0, 1, 2)),
    "untouched": Run(EP2, experts=()),
    "without_policy": Run({**EP2, "recovery.expert_failure": "stop"}, experts=()),
    "kept": Run({**EP2, "recovery.expert_failure": "stop"}, experts=(), resumes="ep2"),
    "before": Run({**EP2, "megatron.ckpt-step": 2}, experts=(), resumes="ep2"),
    "restored": Run({**EP2, "recovery.restore_experts": "restore"}, experts=(), resumes="ep2"),
    "reinitialized": Run(
        {**EP2, **SIGMOID, "recovery.restore_experts": "reinitialize"},
        experts=(),
        resumes="ep2_bias",
    ),
}


DEEP = {"bf16_sharded", "reinitialized"}
"""What others show in parts."""


class Remember(Callback):
    """Keeps the weights of the expert as they are before the first step, on its rank."""

    def __init__(self) -> None:
        self.weights: list[Any] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self._model, self._first = model, start_step + 1

    def on_step_start(self, step: int) -> None:
        if step == self._first:
            self.weights = [
                it.tensor.tolist()
                for it in parameters_of_experts(self._model)
                if (it.layer, it.expert) == (LAYER, EXPERT)
            ]


def train(folder: Path, names: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Make the runs on this rank; returns errors, and weights at the start, by run."""
    from moe_megatron.mcore import world
    from moe_megatron.run.start import Attachments, start
    from moe_megatron.testing.harms import BadExpert

    errors, weights = {}, {}
    world.join("gloo")
    for name in names:
        run = RUNS[name]
        given = {**SETTINGS, **run.settings, "run_dir": str(folder / name)}
        if run.resumes:
            given["checkpoint.load"] = str(folder / run.resumes / "checkpoints")
            given["training.train_steps"] = STEPS + 3
        harms = [
            BadExpert(BAD, LAYER, expert, gradients=run.gradients, adapter=run.adapter)
            for expert in run.experts
        ]
        remember = Remember()
        config = apply_overrides(load_config("test_tiny"), given)
        try:
            start(config, attached=Attachments(callbacks=[*harms, remember]))
        except RecoveryError as error:
            errors[name] = str(error)
        weights[name] = remember.weights
    world.leave()
    return errors, weights


def named(*names: str) -> list[Any]:
    return [pytest.param(it, marks=pytest.mark.deep if it in DEEP else ()) for it in names]


@dataclass(frozen=True)
class Found:
    folder: Path
    errors: dict[str, str]
    weights: dict[str, Any]
    """Of the expert before the first step, on the rank that has it."""

    def losses(self, name: str) -> dict[int, Any]:
        return {it.step: it.loss for it in step_records(self.folder / name)}

    def load(self, name: str) -> dict[int, list[int]]:
        """Tokens of each expert of the layer, by step."""
        snapshots = read_routing(self.folder / name / ROUTING_FILE)
        return {it.step: it.tokens_per_expert[LAYER - 1].tolist() for it in snapshots}

    def events(self, name: str, kind: str) -> list[Event]:
        return [event for event in read_events(self.folder / name) if event.kind == kind]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Found:
    folder = tmp_path_factory.mktemp("experts")
    names = [name for name in RUNS if name not in DEEP or name in chosen("name")]
    (errors, weights), (others, _) = run_distributed(train, folder, names, world_size=2)
    assert errors == others
    return Found(folder, errors, weights)


@pytest.mark.parametrize(
    "name",
    named(
        "ep2",
        "tp2",
        "ep2_bias",
        "bf16_sharded",
        "gradients",
        "adapter",
        "adapter_tp2",
        "adapter_gradients",
    ),
)
def test_failed_expert_is_masked_and_the_others_train_on(name: str, found: Found) -> None:
    losses, load = found.losses(name), found.load(name)
    assert len(losses) == STEPS, "no step is lost"
    assert all(math.isfinite(loss) for loss in losses.values())
    assert [tokens[EXPERT] > 0 for tokens in load.values()] == [True] * 2 + [False] * 4
    assert len({sum(tokens) for tokens in load.values()}) == 1, "no assignment is lost"
    (event,) = found.events(name, "masked")
    what = "gradients" if name.endswith("gradients") else "weights"
    assert event.fields == {
        "step": BAD, "layer": LAYER, "expert": EXPERT, "reason": f"its {what} are not finite",
    }  # fmt: skip
    assert found.events(name, "skipped") == []


def test_nothing_changes_while_no_expert_fails(found: Found) -> None:
    assert found.losses("untouched") == found.losses("without_policy")
    assert found.load("untouched") == found.load("without_policy")


def test_run_ends_when_too_few_experts_live(found: Found) -> None:
    expected = "layer 2 has lost experts [0, 1, 2] of 4: a token would find 1 living ones"
    assert expected in found.errors["too_many"]


def test_mask_is_kept_in_checkpoints(found: Found) -> None:
    checkpoints = found.folder / "ep2" / "checkpoints"
    assert read_masked(checkpoints / "iter_0000002") == frozenset()
    assert read_masked(checkpoints / "iter_0000004") == {(LAYER, EXPERT)}
    assert all(tokens[EXPERT] == 0 for tokens in found.load("kept").values())


def test_restored_weights_are_those_before_the_loss(found: Found) -> None:
    weights = found.weights["before"]
    assert len(weights) == 2
    assert any(value for row in weights[0] for value in row)
    assert found.weights["restored"] == weights
    assert not any(value for row in found.weights["kept"][0] for value in row)


def test_frozen_base_of_a_lost_adapter_stays_and_its_adapter_returns(found: Found) -> None:
    before, kept, restored, anew = (
        found.weights[f"adapter_{it}"] for it in ("before", "kept", "restored", "reinitialized")
    )
    base, adapter = before[:2], before[2:]
    assert len(adapter) == 4
    assert kept[:2] == restored[:2] == anew[:2] == base
    assert not any(value for matrix in kept[2:] for row in matrix for value in row)
    assert restored[2:] == adapter
    for a, b in (anew[2:4], anew[4:]):
        assert any(value for row in a for value in row)
        assert not any(value for row in b for value in row)


@pytest.mark.parametrize(
    "name", named("restored", "reinitialized", "adapter_restored", "adapter_reinitialized")
)
def test_expert_returns_on_request(name: str, found: Found) -> None:
    load = found.load(name)
    assert len(load) == 3
    assert all(tokens[EXPERT] > 0 for tokens in load.values())
    assert all(math.isfinite(loss) for loss in found.losses(name).values())
    (event,) = found.events(name, "unmasked")
    assert event.fields == {"step": STEPS, "layer": LAYER, "expert": EXPERT}

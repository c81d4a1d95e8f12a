"""The common part of an optimizer state, between one optimizer and two chained ones."""

import copy
from typing import Any

import pytest
from megatron.core.optimizer.optimizer import ChainedOptimizer, param_group_identifier_keys

from moe_megatron.mcore.state.optimizer_resharding import reshape_state, resharding_optimizer_states

TENSORS = {"bucket": "tensors of the loading run"}


def group(*, expert: bool, wd_mult: float, step: float = 7.0) -> dict[str, Any]:
    return {
        "params": [],
        "step": step,
        "lr": 0.1,
        "wd_mult": wd_mult,
        "lr_mult": 1.0,
        "is_expert_parallel": expert,
        "is_decoupled_lr": False,
    }


def hyper(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"optimizer": {"param_groups": list(groups)}, "param_state_sharding_type": "fully"}


def single() -> dict[str, Any]:
    return hyper(group(expert=False, wd_mult=1.0), group(expert=False, wd_mult=0.0))


def chained() -> dict[Any, Any]:
    return {
        0: hyper(group(expert=False, wd_mult=1.0), group(expert=False, wd_mult=0.0)),
        1: hyper(group(expert=True, wd_mult=1.0)),
    }


def identifiers(groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(g.get(key) for key in param_group_identifier_keys) for g in groups]


def test_single_state_for_two_optimizers_has_groups_for_both_kinds():
    state = reshape_state({**single(), "param_state": TENSORS}, 2)
    assert set(state) == {0, 1}
    for part in state.values():
        groups = part["optimizer"]["param_groups"]
        assert len(groups) == 4
        assert {g["is_expert_parallel"] for g in groups} == {True, False}
        assert {g["step"] for g in groups} == {7.0}
        assert part["param_state_sharding_type"] == "fully"
        # Each optimizer finds its groups by these keys: none may be there twice.
        assert len(set(identifiers(groups))) == len(groups)


def test_tensors_under_each_optimizer_stay_there():
    loaded = {**single(), 0: {"param_state": {"a": 1}}, 1: {"param_state": {"b": 2}}}
    state = reshape_state(loaded, 2)
    assert (state[0]["param_state"], state[1]["param_state"]) == ({"a": 1}, {"b": 2})


def test_chained_state_for_one_optimizer_has_each_kind_of_group_once():
    state = reshape_state({**chained(), "param_state": TENSORS}, 1)
    assert state["param_state"] is TENSORS
    assert not any(isinstance(key, int) for key in state)
    groups = state["optimizer"]["param_groups"]
    assert sorted(g["wd_mult"] for g in groups) == [0.0, 1.0]
    assert not any(g["is_expert_parallel"] for g in groups)


def test_groups_that_only_experts_have_survive():
    loaded = {0: hyper(group(expert=False, wd_mult=0.0)), 1: hyper(group(expert=True, wd_mult=1.0))}
    groups = reshape_state(loaded, 1)["optimizer"]["param_groups"]
    assert sorted(g["wd_mult"] for g in groups) == [0.0, 1.0]


@pytest.mark.parametrize(("make", "num"), [(single, 1), (chained, 2)])
def test_state_of_the_same_shape_is_left_alone(make, num):
    state = {**make(), "param_state": TENSORS}
    assert reshape_state(copy.deepcopy(state), num) == state


@pytest.mark.parametrize(("make", "num"), [(single, 2), (chained, 1)])
def test_loaded_state_is_not_changed(make, num):
    state = make()
    before = copy.deepcopy(state)
    reshape_state(state, num)
    assert state == before


def test_there_and_back_keeps_the_groups():
    loaded = single()
    back = reshape_state(reshape_state(loaded, 2), 1)
    assert identifiers(back["optimizer"]["param_groups"]) == identifiers(
        loaded["optimizer"]["param_groups"]
    )


def fail_inside(original: Any) -> None:
    with resharding_optimizer_states():
        assert ChainedOptimizer.load_state_dict is not original
        raise RuntimeError("inside")


def test_patch_ends_with_the_context():
    original = ChainedOptimizer.load_state_dict
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside(original)
    assert ChainedOptimizer.load_state_dict is original

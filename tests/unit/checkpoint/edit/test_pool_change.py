"""What the experts of a changed pool are made of, against the rules said in other words."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.pool_change import Change, Grow, changed_experts, what_is_kept
from moe_megatron.config import Architecture, ModelConfig, MoEConfig
from moe_megatron.errors import CheckpointError
from moe_megatron.routing import Routing, bind, resolve
from moe_megatron.telemetry.values.profile import RoutingProfile

LAYERS, EXPERTS = 2, 4
COUNTS = np.array([[40, 10, 30, 20], [5, 5, 80, 10]])


def model(**moe: Any) -> Architecture:
    return Architecture(
        model=ModelConfig(num_layers=LAYERS),
        moe=resolve(MoEConfig(num_experts=EXPERTS, **moe)),
        vocab_size=100,
    )


def profile(counts: Any = COUNTS) -> RoutingProfile:
    empty = RoutingProfile.empty(layers=(1, 2), num_experts=EXPERTS, top_k=2)
    tokens = int(counts.sum(1)[0]) // 2
    assigned = counts.sum(1)
    return dataclasses.replace(
        empty, tokens=tokens, tokens_per_expert=counts, assigned=assigned, steps=1, first_step=1,
        last_step=1,
    )  # fmt: skip


def rows(layer: int) -> torch.Tensor:
    """Expert 1 is routed to as expert 0 is, and expert 3 as expert 2."""
    return torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])


def change(wanted: Change, **moe: Any) -> tuple[MoEConfig, Any]:
    return changed_experts(model(**moe), wanted, Path("nowhere"), rows)


def origins(layer: Any) -> list[int]:
    return [it.members[0][0] for it in layer]


@pytest.mark.parametrize("times", [2, 3])
def test_a_multiple_copies_every_expert_beside_itself(times: int) -> None:
    moe, layers = change(Grow(num_experts=times * EXPERTS, noise=0.1))
    assert (moe.num_experts, moe.top_k) == (times * EXPERTS, times * 2)
    for layer in layers.values():
        assert origins(layer) == [e for e in range(EXPERTS) for _ in range(times)]
        for expert in range(EXPERTS):
            copies = layer[times * expert : times * (expert + 1)]
            assert sum(it.sign for it in copies) == 0  # the mean of the copies stays
            assert [it.copies for it in copies] == [times] * times


def test_another_number_splits_the_most_used() -> None:
    moe, layers = change(Grow(num_experts=6, profile=profile()))
    assert (moe.num_experts, moe.top_k) == (6, 2)
    assert origins(layers[1]) == [0, 0, 1, 2, 2, 3]
    # a half of expert 2 still has more tokens than any other
    assert origins(layers[2]) == [0, 1, 2, 2, 2, 3]
    assert [it.copies for it in layers[2]] == [1, 1, 3, 3, 3, 1]


def test_the_most_used_are_kept_and_the_others_join_their_nearest() -> None:
    _, kept = change(KeepMostUsed(num_experts=2, profile=profile()))
    assert origins(kept[1]) == [0, 2]
    assert origins(kept[2]) == [2, 3]
    assert all(len(it.members) == 1 for it in kept[1])
    moe, merged = change(MergeLeastUsed(num_experts=2, profile=profile()))
    assert moe.num_experts == 2
    assert merged[1][0].members == ((0, 0.8), (1, 0.2))
    assert merged[1][1].members == ((2, 0.6), (3, 0.4))


def test_groups_of_a_router_keep_one_size() -> None:
    groups = {"router": {"name": "top_k", "expert_groups": 2, "group_top_k": 1}}
    _, layers = change(Grow(num_experts=6, profile=profile()), **groups)
    assert Counter(it // 2 for it in origins(layers[1])) == {0: 3, 1: 3}
    with pytest.raises(CheckpointError, match="5 experts cannot be divided into the 2 groups"):
        change(Grow(num_experts=5, profile=profile()), **groups)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Grow(num_experts=4), "4 experts are not more than the 4"),
        (Grow(num_experts=8, top_k=9), r"top_k \(9\) must be from 1 to the 8"),
        (Grow(num_experts=6), "nowhere has no routing_profile.json"),
        (KeepMostUsed(num_experts=4), "cannot keep 4 experts: .* Keep 2 to 3"),
        (KeepMostUsed(num_experts=1), "cannot keep 1 experts"),
    ],
)
def test_what_does_not_fit_is_refused(wanted: Change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        change(wanted)


SHARED = {"name": "specialised", "domains": 2, "shared": 2}


@pytest.mark.parametrize(
    ("router", "wanted", "message"),
    [
        ("gshard", Grow(num_experts=8), "8 experts, 4 of them for a token, .* needs moe.top_k 2"),
        ({"name": "hierarchical", "groups": 2}, KeepMostUsed(num_experts=2), "2 experts, 2 of"),
        ({"name": "specialised", "domains": 2}, Grow(num_experts=7), "7 .* into the 2 groups"),
        (SHARED, KeepMostUsed(num_experts=3), "last 2 of the 4 experts are shared by all domains"),
        (SHARED, Grow(num_experts=6), "grow to a multiple of 4"),
    ],
)
def test_what_does_not_fit_the_router_is_refused(router: Any, wanted: Change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        change(dataclasses.replace(wanted, profile=profile()), router=router)


def test_a_wrong_noise_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"noise \(2\) must be a standard deviation"):
        Grow(num_experts=8, noise=2)


ROUTERS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax over all": {"router": {"name": "top_k", "pre_softmax": True}},
    "sigmoid": {"router": {"name": "top_k", "score_function": "sigmoid"}},
    "one of a sigmoid": {"router": {"name": "top_k", "score_function": "sigmoid"}, "top_k": 1},
    "groups": {
        "router": {
            "name": "top_k",
            "score_function": "sigmoid",
            "expert_groups": 2,
            "group_top_k": 1,
        }
    },
    "switch": {"router": {"name": "top_k", "pre_softmax": True}, "top_k": 1},
    "biased_softmax": {"router": "biased_softmax"},
    "grouped": {"router": {"name": "grouped", "groups": 2}},
    "hierarchical": {"router": {"name": "hierarchical", "groups": 2}},
    "specialised": {"router": {"name": "specialised", "domains": 2}},
    "shared": {"router": SHARED},
    "above": {"router": "top_p"},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_what_is_said_of_a_doubled_pool_is_true(name: str) -> None:
    """The weight of an expert is shared by its copies exactly where that is said."""
    before = model(**ROUTERS[name]).moe
    wanted = Grow(num_experts=2 * EXPERTS)
    after, _ = change(wanted, **ROUTERS[name])
    logits = torch.randn(50, EXPERTS, generator=torch.Generator().manual_seed(0)).double()
    given = {
        "hidden": None, "padding": None, "training": False, "expert_bias": None, "state": None,
        "token_ids": None, "domain_ids": torch.arange(50) % 3 - 1, "task_ids": None,
    }  # fmt: skip
    first: Routing = bind(before)(logits, **given)
    second: Routing = bind(after)(logits.repeat_interleave(2, 1), **given)
    shared = torch.allclose(second.probs.view(50, EXPERTS, 2).sum(-1), first.probs, atol=1e-6)
    said = "computes what it did" in what_is_kept(before, after, wanted)
    assert shared == said or not said
    assert said == (name not in {"one of a sigmoid", "above"})

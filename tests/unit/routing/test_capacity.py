import pytest
import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping, get_capacity

from moe_megatron.errors import ConfigError
from moe_megatron.routing import Routing, drop_over_capacity, expert_capacity
from moe_megatron.routing.capacity import capacity_of, filled
from moe_megatron.routing.top_k import route_top_k

TOKENS, EXPERTS, TOP_K = 40, 4, 2


@pytest.fixture
def routing():
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3))
    logits[:, 0] += 1.0  # a favourite, so that something has to be dropped
    return route_top_k(logits, top_k=TOP_K)


@pytest.mark.parametrize("factor", [0.25, 1.0, 1.3, 10.0])
def test_capacity_and_drops_by_probability_equal_megatron(routing, factor):
    capacity = expert_capacity(TOKENS, TOP_K, EXPERTS, factor)
    assert capacity == get_capacity(TOKENS * TOP_K, EXPERTS, factor)
    probs, routing_map = apply_router_token_dropping(
        routing.probs, routing.routing_map, TOP_K, factor
    )
    ours = drop_over_capacity(routing, capacity)
    assert torch.equal(ours.probs, probs)
    assert torch.equal(ours.routing_map, routing_map)
    assert torch.equal(ours.tokens_per_expert, routing_map.sum(0))


def test_drops_by_position_keep_the_first(routing):
    ours = drop_over_capacity(routing, 7, "position").routing_map
    for expert in range(EXPERTS):
        wanted = routing.routing_map[:, expert].nonzero().squeeze(1)
        assert ours[:, expert].nonzero().squeeze(1).tolist() == wanted[:7].tolist()


@pytest.mark.parametrize("policy", ["probs", "position"])
def test_order_and_padding_decide_who_has_a_place(routing, policy):
    generator = torch.Generator().manual_seed(4)
    order = torch.randperm(TOKENS, generator=generator)
    padding = torch.rand(TOKENS, generator=generator) < 0.3
    ours = drop_over_capacity(routing, 5, policy, order_T=order, padding_T=padding).routing_map
    for expert in range(EXPERTS):
        wanted = [
            token
            for token in order.tolist()
            if routing.routing_map[token, expert] and not padding[token]
        ]
        if policy == "probs":
            wanted.sort(key=lambda token: -float(routing.probs[token, expert]))
        assert ours[:, expert].nonzero().squeeze(1).tolist() == sorted(wanted[:5])


def test_of_equal_weights_the_first_stay():
    equal = Routing.of_indices(torch.zeros(9, 1, dtype=torch.int64), torch.full((9, 1), 0.5), 2)
    assert drop_over_capacity(equal, 4).routing_map[:, 0].tolist() == [True] * 4 + [False] * 5


def test_padding_is_dropped_where_there_is_room_for_all(routing):
    padding = torch.zeros(TOKENS, dtype=torch.bool)
    padding[3] = True
    ours = drop_over_capacity(routing, TOKENS, padding_T=padding)
    assert not ours.kept[3].any()
    assert int((~ours.kept).sum()) == TOP_K


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.25])
def test_capacity_counts_tokens_alone(factor):
    padding = torch.zeros(TOKENS, dtype=torch.bool)
    padding[::7] = True
    alone = expert_capacity(int((~padding).sum()), TOP_K, EXPERTS, factor)
    assert int(capacity_of(padding, TOP_K, EXPERTS, factor)) == alone


@pytest.mark.parametrize("capacity", [1, 7, TOKENS])
def test_filled_maps_have_every_place_taken_and_lose_nobody(routing, capacity):
    kept = drop_over_capacity(routing, capacity).routing_map
    full = filled(kept, capacity)
    assert full.sum(dim=0).tolist() == [capacity] * EXPERTS
    assert torch.equal(full & kept, kept)


def test_dropped_assignments_weigh_nothing_and_the_others_stay(routing):
    ours = drop_over_capacity(routing, 7)
    assert int((~ours.kept).sum()) > 0
    assert not ours.weights[~ours.kept].any()
    assert torch.equal(ours.weights[ours.kept], routing.weights[ours.kept])
    assert int(ours.tokens_per_expert.max()) == 7


def test_unknown_policy_is_refused(routing):
    with pytest.raises(ConfigError, match="one of probs, position, not 'random'"):
        drop_over_capacity(routing, 7, "random")

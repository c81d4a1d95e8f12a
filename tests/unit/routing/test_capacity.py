import pytest
import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping, get_capacity

from moe_megatron.errors import ConfigError
from moe_megatron.routing import drop_over_capacity, expert_capacity
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


def test_dropped_assignments_weigh_nothing_and_the_others_stay(routing):
    ours = drop_over_capacity(routing, 7)
    assert int((~ours.kept).sum()) > 0
    assert not ours.weights[~ours.kept].any()
    assert torch.equal(ours.weights[ours.kept], routing.weights[ours.kept])
    assert int(ours.tokens_per_expert.max()) == 7


def test_unknown_policy_is_refused(routing):
    with pytest.raises(ConfigError, match="one of probs, position, not 'random'"):
        drop_over_capacity(routing, 7, "random")

import re
from dataclasses import fields

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
    topk_routing_with_score_function,
)

from moe_megatron.config import MoEConfig
from moe_megatron.config.flags import RULES
from moe_megatron.errors import ConfigError
from moe_megatron.families.settings import TOP_K_ROUTER
from moe_megatron.routing import BoundRouter, bind, resolve
from moe_megatron.routing.top_k import TopKOptions, route_top_k

TOKENS, EXPERTS = 37, 8
SCORE_FUNCTIONS = ["softmax", "sigmoid", "sqrtsoftplus"]


def assert_same(ours, theirs):
    """Up to the last bits of fp32: on a CPU Megatron's softmax is our kernel."""
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-8)


@pytest.fixture
def logits():
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scaling", [None, 2.5])
@pytest.mark.parametrize("groups", [(None, None), (4, 2)])
@pytest.mark.parametrize("pre_softmax", [False, True])
@pytest.mark.parametrize("score_function", SCORE_FUNCTIONS)
def test_route_top_k_equals_megatron(logits, score_function, pre_softmax, groups, scaling, dtype):
    logits = logits.to(dtype)
    num_groups, group_top_k = groups
    ours = route_top_k(
        logits,
        top_k=4,
        score_function=score_function,
        pre_softmax=pre_softmax,
        expert_groups=num_groups,
        group_top_k=group_top_k,
        scaling=scaling,
    )
    probs, routing_map = topk_routing_with_score_function(
        logits,
        4,
        use_pre_softmax=pre_softmax,
        num_groups=num_groups,
        group_topk=group_top_k,
        scaling_factor=scaling,
        score_function=score_function,
    )
    assert_same(ours.probs, probs)
    assert torch.equal(ours.routing_map, routing_map)
    assert ours.weights.dtype == dtype


@pytest.mark.parametrize("score_function", ["sigmoid", "sqrtsoftplus"])
def test_route_top_k_with_expert_bias_equals_megatron(logits, score_function):
    bias = torch.linspace(-1, 1, EXPERTS)
    ours = route_top_k(logits, top_k=2, score_function=score_function, expert_bias=bias)
    probs, routing_map = topk_routing_with_score_function(
        logits, 2, score_function=score_function, expert_bias=bias
    )
    assert torch.equal(ours.probs, probs)
    assert torch.equal(ours.routing_map, routing_map)
    assert not torch.equal(
        routing_map, route_top_k(logits, top_k=2, score_function=score_function).routing_map
    )


def bound(**options: object) -> BoundRouter:
    return bind(MoEConfig(num_experts=EXPERTS, router=options))


@pytest.mark.parametrize("score_function", SCORE_FUNCTIONS)
def test_distribution_and_map_for_the_loss_equal_megatron(logits, score_function):
    theirs_map, theirs = compute_routing_scores_for_aux_loss(logits, 2, score_function)
    route = bound(score_function=score_function)
    ours = route.distribution(logits)
    assert_same(ours, theirs)
    assert torch.equal(route.balancing_map(ours, route_top_k(logits, top_k=2)), theirs_map)
    assert ours.sum(-1).allclose(torch.ones(TOKENS))


def test_weights_after_softmax_over_the_chosen_sum_to_one(logits):
    assert route_top_k(logits, top_k=3).weights.sum(-1).allclose(torch.ones(TOKENS))


def test_weights_of_pre_softmax_are_probabilities_over_all(logits):
    routing = route_top_k(logits, top_k=1, pre_softmax=True)
    assert torch.equal(routing.weights[:, 0], logits.softmax(-1).max(-1).values)


def test_sparse_and_dense_forms_agree(logits):
    routing = route_top_k(logits, top_k=2)
    for token in range(TOKENS):
        chosen = routing.routing_map[token].nonzero().squeeze(1).tolist()
        assert chosen == sorted(routing.indices[token].tolist())
        for expert, weight in zip(routing.indices[token], routing.weights[token], strict=True):
            assert routing.probs[token, expert] == weight
    assert torch.equal(routing.tokens_per_expert, routing.routing_map.sum(0))


def test_groups_limit_the_choice(logits):
    routing = route_top_k(logits, top_k=4, expert_groups=4, group_top_k=2)
    groups = routing.indices // (EXPERTS // 4)
    assert all(len(set(row)) <= 2 for row in groups.tolist())


@pytest.mark.parametrize("top_k", [0, EXPERTS + 1])
def test_top_k_out_of_range_is_refused(logits, top_k):
    with pytest.raises(ConfigError, match=rf"top_k \({top_k}\) must be at least 1 and at most"):
        route_top_k(logits, top_k=top_k)


def test_unknown_score_function_is_refused(logits):
    with pytest.raises(ConfigError, match="one of softmax, sigmoid, sqrtsoftplus, not 'tanh'"):
        route_top_k(logits, top_k=2, score_function="tanh")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 1}, "moe.top_k 1 needs moe.router.pre_softmax true"),
        (
            {"expert_bias": True},
            "moe.expert_bias needs a score function that scores experts independently; set "
            "moe.router.score_function to 'sigmoid' or 'sqrtsoftplus', not 'softmax'.",
        ),
        (
            {"router": {"score_function": "sigmiod"}},
            "moe.router.score_function needs 'softmax', 'sigmoid' or 'sqrtsoftplus', not "
            "'sigmiod'. Did you mean 'sigmoid'?",
        ),
        (
            {"router": {"expert_groups": 4}},
            "moe.router.expert_groups (4) and moe.router.group_top_k (None) belong together; set "
            "both, or neither.",
        ),
        (
            {"router": {"expert_groups": 3, "group_top_k": 1}},
            "moe.router.expert_groups (3) must divide moe.num_experts (8); try 1, 2, 4 or 8.",
        ),
        (
            {"router": {"expert_groups": 2, "group_top_k": 3}, "top_k": 4},
            "moe.router.group_top_k (3) must not exceed moe.router.expert_groups (2)",
        ),
        (
            {"router": {"expert_groups": 8, "group_top_k": 1}, "top_k": 2},
            "its groups must hold top_k experts (they hold 1).",
        ),
        (
            {
                "router": {"expert_groups": 4, "group_top_k": 2},
                "load_balancing": "quantile_balancing",
                "aux_loss_coef": 0,
            },
            "moe.router.expert_groups (4) does not work with moe.load_balancing 'quantile_balanci",
        ),
        (
            {
                "router": {"score_function": "sigmoid"},
                "load_balancing": "sinkhorn",
                "aux_loss_coef": 0,
            },
            "moe.router.score_function (sigmoid) does not work with moe.load_balancing 'sinkhorn'",
        ),
        ({"router": {"scaling": 0}}, "moe.router.scaling must be greater than 0, not 0.0."),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(MoEConfig(**given))


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 1, "router": {"pre_softmax": True}},
        {"top_k": 1, "router": {"score_function": "sigmoid"}},
        {"top_k": 1, "load_balancing": "sinkhorn", "aux_loss_coef": 0.0},
        {"expert_bias": True, "router": {"score_function": "sigmoid"}},
        {"router": {"expert_groups": 4, "group_top_k": 2}},
        {"router": "sparse_mixer", "top_k": 1},
    ],
)
def test_options_that_fit_are_accepted(given):
    resolve(MoEConfig(**given))


def test_options_are_those_that_tables_and_flags_know():
    """Three places name the options of Megatron's own router: itself, its flags, HF families."""
    options = TopKOptions()
    written = {
        f"moe.router.{field.name}": getattr(options, field.name) for field in fields(options)
    }
    assert {**written, "moe.router.name": "top_k"} == TOP_K_ROUTER
    flags = {rule.field for rule in RULES if rule.field.startswith("moe.router.")}
    assert flags == set(written)

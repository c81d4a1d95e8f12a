import math

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func, z_loss_func

from moe_megatron.routing import (
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)

TOKENS, EXPERTS, TOP_K = 24, 6, 2


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(TOKENS, EXPERTS, generator=generator).requires_grad_()


@pytest.fixture
def routed(logits):
    scores = logits.softmax(-1)
    return scores, scores >= scores.topk(TOP_K).values[:, -1:]


def test_load_balancing_loss_and_its_gradient_equal_megatron(logits, routed):
    scores, routing_map = routed
    ours = load_balancing_loss(scores, routing_map, TOP_K)
    theirs = switch_load_balancing_loss_func(
        scores, routing_map.sum(0), TOKENS, TOP_K, EXPERTS, moe_aux_loss_coeff=1.0
    )
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_load_balancing_loss_is_the_formula_of_the_paper(routed):
    scores, routing_map = routed
    total = 0.0
    for expert in range(EXPERTS):
        f = sum(bool(routing_map[t, expert]) for t in range(TOKENS)) / (TOKENS * TOP_K)
        p = sum(float(scores[t, expert]) for t in range(TOKENS)) / TOKENS
        total += f * p
    assert float(load_balancing_loss(scores, routing_map, TOP_K)) == pytest.approx(EXPERTS * total)


def test_load_balancing_loss_of_perfect_balance_is_one():
    scores = torch.full((TOKENS, EXPERTS), 1 / EXPERTS)
    tokens = torch.arange(TOKENS)
    routing_map = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool)
    routing_map[tokens, tokens % EXPERTS] = True
    routing_map[tokens, (tokens + 1) % EXPERTS] = True
    assert float(load_balancing_loss(scores, routing_map, TOP_K)) == pytest.approx(1.0)


def test_load_balancing_loss_of_a_collapsed_router_is_experts_over_top_k():
    scores = torch.zeros(TOKENS, EXPERTS)
    scores[:, :TOP_K] = 1 / TOP_K
    loss = load_balancing_loss(scores, scores > 0, TOP_K)
    assert float(loss) == pytest.approx(EXPERTS / TOP_K)


def test_sequence_loss_is_the_mean_over_sequences(routed):
    scores, routing_map = routed
    sequence = torch.arange(TOKENS) // 8
    each = [
        load_balancing_loss(scores[sequence == s], routing_map[sequence == s], TOP_K)
        for s in range(3)
    ]
    ours = sequence_load_balancing_loss(scores, routing_map, TOP_K, sequence, 3)
    torch.testing.assert_close(ours, torch.stack(each).mean())


def test_z_loss_equals_megatron(logits):
    torch.testing.assert_close(z_loss(logits), z_loss_func(logits, 1.0))


def test_z_loss_of_zero_logits_is_squared_log_of_experts():
    assert float(z_loss(torch.zeros(3, EXPERTS))) == pytest.approx(math.log(EXPERTS) ** 2)


def test_entropy_is_zero_if_sure_and_log_of_experts_if_undecided():
    assert float(router_entropy(torch.eye(EXPERTS))) == 0.0
    undecided = torch.full((3, EXPERTS), 1 / EXPERTS)
    assert float(router_entropy(undecided)) == pytest.approx(math.log(EXPERTS))


def test_losses_without_tokens_are_zero():
    nothing = torch.zeros(0, EXPERTS)
    assert float(load_balancing_loss(nothing, nothing.bool(), TOP_K)) == 0.0
    assert float(z_loss(nothing)) == 0.0
    assert float(router_entropy(nothing)) == 0.0

"""The biased softmax against the router that transformers has for ERNIE 4.5."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter

from moe_megatron.errors import ConfigError
from moe_megatron.routing.biased_softmax import route_biased_softmax

TOKENS, WIDTH, EXPERTS = 500, 16, 8


@pytest.mark.parametrize("spread", [0.5, 60.0])
@pytest.mark.parametrize("top_k", [1, 3])
def test_experts_and_weights_are_those_of_ernie(top_k: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = {"hidden_size": WIDTH, "num_experts": EXPERTS, "num_experts_per_tok": top_k}
    theirs = Ernie4_5_MoeTopKRouter(SimpleNamespace(**sizes, moe_norm_min=1e-3))
    theirs.weight.data = torch.randn(EXPERTS, WIDTH, generator=generator)
    bias = torch.randn(EXPERTS, generator=generator) * 0.3
    theirs.moe_statics.e_score_correction_bias.data = bias[None]
    hidden = torch.randn(TOKENS, WIDTH, generator=generator) * spread / WIDTH**0.5
    with torch.no_grad():
        logits, weights, experts = theirs(hidden)
    ours = route_biased_softmax(logits, top_k=top_k, smallest_sum=1e-3, expert_bias=bias)
    assert torch.equal(ours.indices, experts)
    torch.testing.assert_close(ours.weights, weights)
    # The bias changes choices, or it would not be compared.
    plain = route_biased_softmax(logits, top_k=top_k, expert_bias=None)
    assert not torch.equal(plain.indices, experts)


def test_the_sum_is_never_smaller_than_asked() -> None:
    logits = torch.tensor([[0.0, -90.0, -90.0]])
    bias = torch.tensor([-3.0, 0.0, 0.0])
    routing = route_biased_softmax(logits, top_k=2, smallest_sum=1e-6, expert_bias=bias)
    assert sorted(routing.indices[0].tolist()) == [1, 2]
    assert routing.weights.sum() < 1e-30


def test_too_many_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be at least 1 and at most"):
        route_biased_softmax(torch.zeros(2, 3), top_k=4, expert_bias=None)

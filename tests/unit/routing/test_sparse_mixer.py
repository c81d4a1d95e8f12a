"""SparseMixer-v2 against the code that transformers has for PhiMoE."""

import pytest
import torch
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from moe_megatron.errors import ConfigError
from moe_megatron.routing.sparse_mixer import route_sparse_mixer

TOKENS, EXPERTS = 2000, 8


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(TOKENS, EXPERTS, generator=generator) * 0.5).requires_grad_()


@pytest.mark.parametrize("jitter", [0.01, 0.2])
def test_without_training_experts_and_weights_are_theirs(
    logits: torch.Tensor, jitter: float
) -> None:
    ours = route_sparse_mixer(logits, top_k=2, jitter=jitter)
    weights, experts = sparsemixer(logits, jitter, training=False)
    assert torch.equal(ours.indices, experts)
    assert torch.equal(ours.weights, weights)
    # Else the jitter would not be compared: some experts have rivals, some have none.
    assert 0 < (weights < 1).float().mean() < 1
    assert ours.tokens_per_expert.sum() == 2 * TOKENS


def test_in_training_choice_weights_and_gradients_are_theirs(logits: torch.Tensor) -> None:
    results = []
    for route in (
        lambda: route_sparse_mixer(logits, top_k=1, jitter=0.3, training=True),
        lambda: sparsemixer(logits, 0.3, training=True),
    ):
        torch.manual_seed(5)
        results.append(route())
    ours, (weights, experts) = results
    assert torch.equal(ours.indices, experts[:, :1])
    # Theirs are thirds to four digits.
    torch.testing.assert_close(ours.weights, weights[:, :1], atol=1e-4, rtol=0)
    upstream = torch.randn(TOKENS, 1, generator=torch.Generator().manual_seed(2))
    (ours_grad,) = torch.autograd.grad(ours.weights, logits, upstream)
    (their_grad,) = torch.autograd.grad(weights[:, :1], logits, upstream)
    torch.testing.assert_close(ours_grad, their_grad)
    assert ours_grad.abs().max() > 0


def test_choice_in_training_is_a_sample_of_what_is_near() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8, -3.0]]).expand(20_000, -1)
    torch.manual_seed(3)
    routing = route_sparse_mixer(logits, top_k=2, jitter=0.15, training=True)
    near = torch.softmax(torch.tensor([1.0, 0.9, 0.8]), dim=0)
    first = torch.bincount(routing.indices[:, 0], minlength=4) / len(logits)
    torch.testing.assert_close(first[:3], near, atol=0.015, rtol=0)
    assert first[3] == 0
    assert (routing.indices[:, 0] != routing.indices[:, 1]).all()
    # A best expert counts fully; of the others a quarter does, and the rest for a third.
    share = routing.weights[:, 0] / near[routing.indices[:, 0]]
    assert (share[routing.indices[:, 0] == 0] == 1).all()
    others = share[routing.indices[:, 0] != 0]
    fully = (others > 0.99).float().mean()
    assert abs(float(fully) - 0.25) < 0.02
    torch.testing.assert_close(others[others < 0.99], torch.full_like(others, 1 / 3)[others < 0.99])


@pytest.mark.parametrize("top_k", [0, 9])
def test_number_of_experts_is_checked(logits: torch.Tensor, top_k: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1 and at most the number of experts"):
        route_sparse_mixer(logits, top_k=top_k)

"""Token losses in blocks against torch's own cross entropy."""

import pytest
import torch

from moe_megatron.mcore.cpu.fast.cross_entropy import _BLOCK_BYTES, TokenLosses

VOCABULARY = 50


@pytest.mark.parametrize("vocabulary", [VOCABULARY, _BLOCK_BYTES // 8, _BLOCK_BYTES])
def test_losses_and_gradient_equal_those_of_torch(vocabulary: int) -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 2, vocabulary)
    target = torch.randint(0, vocabulary, (5, 2))
    weights = torch.rand(5, 2)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    # The gradient is written over the logits, which a leaf does not allow.
    losses = TokenLosses.apply(ours * 1.0, target)
    expected = torch.nn.functional.cross_entropy(
        theirs.flatten(0, 1), target.flatten(), reduction="none"
    ).view(5, 2)
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_bf16_logits_give_fp32_losses() -> None:
    torch.manual_seed(1)
    logits = torch.randn(7, VOCABULARY).bfloat16().requires_grad_()
    target = torch.randint(0, VOCABULARY, (7,))
    losses = TokenLosses.apply(logits * 1.0, target)
    expected = torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    softmax = torch.softmax(logits.detach().float(), dim=-1)
    softmax[torch.arange(7), target] -= 1
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, softmax.bfloat16(), rtol=1e-2, atol=1e-6)


def test_evaluation_leaves_the_logits_alone() -> None:
    logits = torch.randn(3, VOCABULARY)
    before = logits.clone()
    with torch.no_grad():
        TokenLosses.apply(logits, torch.tensor([0, 1, 2]))
    assert torch.equal(logits, before)

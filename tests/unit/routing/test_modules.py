"""The modules for notebooks, against loops over tokens and experts."""

import math

import pytest
import torch

from moe_megatron.routing import ExpertChoice, RoutingInfo, TopKRouter

BATCH, SEQ, HIDDEN, EXPERTS = 3, 7, 16, 6


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(BATCH, SEQ, HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.ones(BATCH, SEQ)
    mask[0, 5:] = mask[2, :2] = 0
    return mask


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_top_k_equals_a_loop_over_tokens(
    top_k: int, score: str, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    router = TopKRouter(HIDDEN, EXPERTS, score_function=score)
    weights, indices, info = router(hidden, top_k=top_k, attention_mask=mask)
    assert weights.shape == indices.shape == (BATCH, SEQ, top_k)
    assert isinstance(info, RoutingInfo)
    counts = [0] * EXPERTS
    for b in range(BATCH):
        for s in range(SEQ):
            if not mask[b, s]:
                assert indices[b, s].tolist() == [-1] * top_k
                assert not weights[b, s].any()
                continue
            logits = hidden[b, s] @ router.weight.T
            scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
            best = sorted(range(EXPERTS), key=lambda e: -float(scores[e]))[:top_k]
            assert indices[b, s].tolist() == best
            chosen = scores[best]
            expected = chosen if top_k == 1 else chosen / chosen.sum()
            torch.testing.assert_close(weights[b, s], expected)
            for expert in best:
                counts[expert] += 1
    assert info.tokens_per_expert.tolist() == counts
    (weights.square().sum() + info.aux_loss + info.z_loss).backward()
    assert router.weight.grad is not None
    assert router.weight.grad.abs().sum() > 0


def test_rows_of_tokens_are_routed_as_a_batch_is(hidden: torch.Tensor) -> None:
    router = TopKRouter(HIDDEN, EXPERTS)
    weights, indices, _ = router(hidden)
    flat_weights, flat_indices, _ = router(hidden.flatten(0, 1))
    assert torch.equal(flat_weights, weights.flatten(0, 1))
    assert torch.equal(flat_indices, indices.flatten(0, 1))
    assert router(hidden.bfloat16())[0].dtype == torch.float32


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 2, 20])
def test_experts_choose_their_best_tokens(
    factor: float, hidden: torch.Tensor, mask: torch.Tensor
) -> None:
    router = ExpertChoice(HIDDEN, EXPERTS)
    decision = router(hidden, capacity_factor=factor, attention_mask=mask)
    tokens = hidden[mask.bool()]
    probs = (tokens @ router.weight.T).softmax(-1)
    wanted = min(len(tokens), math.ceil(len(tokens) * factor / EXPERTS))
    for expert in range(EXPERTS):
        best = sorted(range(len(tokens)), key=lambda t: -float(probs[t, expert]))[:wanted]
        chosen = decision.routing_map[:, expert].nonzero().squeeze(1).tolist()
        assert chosen == sorted(best)
        torch.testing.assert_close(decision.probs[chosen, expert], probs[chosen, expert])
    decision.probs.square().sum().backward()
    assert router.weight.grad is not None

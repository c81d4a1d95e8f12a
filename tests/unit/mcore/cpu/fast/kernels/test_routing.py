"""Softmax and top-k in C against torch, and their gradients against autograd."""

import math

import pytest
import torch

from moe_megatron.mcore.cpu.fast.kernels import routing
from moe_megatron.mcore.cpu.fast.kernels.routing import Softmax, TopKSoftmax, computes


@pytest.fixture(autouse=True)
def in_c() -> None:
    if routing._compiled() is None:
        pytest.skip("no C compiler on this machine")


def numbers(*shape: int, seed: int = 5) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Fewer and more rows than the kernel takes at once, and a rest; few experts and many.
SHAPES = [(1, 1), (3, 8), (16, 8), (37, 5), (50, 257)]


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_its_denominator_are_those_of_torch(shape: tuple[int, int]) -> None:
    logits = numbers(*shape)
    scores, logsumexp = Softmax.apply(logits)
    torch.testing.assert_close(scores, logits.softmax(-1), rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(logsumexp, logits.logsumexp(-1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("through", ["scores", "logsumexp", "both"])
def test_gradients_of_softmax_are_those_of_autograd(shape: tuple[int, int], through: str) -> None:
    d_scores, d_logsumexp = numbers(*shape, seed=6), numbers(shape[0], seed=7)

    def gradient(ours: bool) -> torch.Tensor:
        logits = numbers(*shape).requires_grad_()
        scores, logsumexp = (
            Softmax.apply(logits) if ours else (logits.softmax(-1), logits.logsumexp(-1))
        )
        loss = torch.zeros(())
        if through != "logsumexp":
            loss = loss + (scores * d_scores).sum()
        if through != "scores":
            loss = loss + (logsumexp * d_logsumexp).sum()
        loss.backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "k"), [(shape, k) for shape in SHAPES for k in (1, 2, 5) if k <= shape[1]]
)
def test_the_highest_logits_are_those_of_torch(shape: tuple[int, int], k: int) -> None:
    logits = numbers(*shape)
    weights, chosen = TopKSoftmax.apply(logits, k)
    values, places = logits.topk(k, dim=-1)
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, places, True))
    wanted = torch.zeros_like(logits).scatter(1, places, values.softmax(-1))
    torch.testing.assert_close(weights, wanted, rtol=2e-6, atol=1e-9)
    assert not weights[~chosen].any()


def test_gradients_reach_the_chosen_logits_alone() -> None:
    logits, d_weights = numbers(37, 9), numbers(37, 9, seed=6)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights, chosen = TopKSoftmax.apply(ours, 3)
    (weights * d_weights).sum().backward()
    (theirs.masked_fill(~chosen, -math.inf).softmax(-1) * d_weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=2e-6)
    assert not chosen.requires_grad
    assert not ours.grad[~chosen].any()


def test_of_equal_logits_the_first_are_taken() -> None:
    _, chosen = TopKSoftmax.apply(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert chosen.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_a_nan_is_chosen_and_seen() -> None:
    logits = numbers(20, 6)
    logits[3, 4] = math.nan
    weights, chosen = TopKSoftmax.apply(logits, 2)
    assert chosen[3, 4]
    assert chosen.sum(-1).tolist() == [2] * 20
    assert weights.isnan().any(-1).nonzero().flatten().tolist() == [3]
    scores, logsumexp = Softmax.apply(logits)
    assert scores.isnan().any(-1).nonzero().flatten().tolist() == [3]
    assert logsumexp.isnan().nonzero().flatten().tolist() == [3]


def test_logits_of_minus_infinity_still_leave_k_experts() -> None:
    weights, chosen = TopKSoftmax.apply(torch.tensor([[-math.inf, 1.0, -math.inf]]), 2)
    assert chosen.tolist() == [[True, True, False]]
    assert weights.tolist() == [[pytest.approx(0.0, abs=1e-30), 1.0, 0.0]]


def test_more_experts_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="cannot choose 4 of 3 experts"):
        TopKSoftmax.apply(numbers(2, 3), 4)


def test_no_tokens_are_no_work() -> None:
    assert [
        len(x) for x in (*Softmax.apply(numbers(0, 4)), *TopKSoftmax.apply(numbers(0, 4), 2))
    ] == [0] * 4


@pytest.mark.parametrize(
    "logits",
    [
        numbers(4, 8).bfloat16(),
        numbers(8, 4).t(),
        numbers(2, 4, 8),
        numbers(4, 0),
        numbers(4, 8).to("meta"),
    ],
    ids=["bf16", "turned", "three dimensions", "no experts", "no CPU"],
)
def test_other_logits_are_left_to_the_caller(logits: torch.Tensor) -> None:
    assert not computes(logits)
    assert computes(numbers(4, 8))


def test_threads_of_torch_share_the_rows() -> None:
    logits = numbers(100, 8)
    before = torch.get_num_threads()
    alone = [*Softmax.apply(logits), *TopKSoftmax.apply(logits, 2)]
    torch.set_num_threads(3)
    try:
        together = [*Softmax.apply(logits), *TopKSoftmax.apply(logits, 2)]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))

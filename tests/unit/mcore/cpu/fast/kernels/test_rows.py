"""Tokens in the order of their experts in C, against torch."""

import pytest
import torch

from moe_megatron.mcore.cpu.fast.kernels import rows
from moe_megatron.mcore.cpu.fast.kernels.rows import Gather, Sum, moves, places

TOKENS, EXPERTS = 40, 7


@pytest.fixture(autouse=True)
def in_c() -> None:
    if rows._compiled() is None:
        pytest.skip("no C compiler on this machine")


def random_map() -> torch.Tensor:
    """Some tokens have no expert, some all, and one expert has no token."""
    chosen = torch.rand(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(2)) < 0.4
    chosen[3], chosen[5], chosen[:, 4] = False, True, False
    return chosen


def test_places_are_sorted_by_expert_then_token() -> None:
    chosen = random_map()
    expert, token = chosen.t().nonzero(as_tuple=True)
    found = places(chosen, len(token))
    assert found is not None
    assert torch.equal(found[0], token)
    assert torch.equal(found[1], token * EXPERTS + expert)
    # A map in another order of memory is the same map.
    turned = places(chosen.t().contiguous().t(), len(token))
    assert turned is not None
    assert torch.equal(turned[0], token)


@pytest.mark.parametrize("off", [-1, 1])
def test_another_number_of_rows_is_told(off: int) -> None:
    chosen = random_map()
    assert places(chosen, int(chosen.sum()) + off) is None


# A part of the block that the sum works on, one whole, and one and a rest.
@pytest.mark.parametrize("width", [5, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_and_sum_are_those_of_torch(width: int, dtype: torch.dtype) -> None:
    chosen = random_map()
    found = places(chosen, int(chosen.sum()))
    assert found is not None
    token_of, _ = found
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(TOKENS, width, generator=generator).to(dtype).requires_grad_()
    d_rows = torch.randn(len(token_of), width, generator=generator).to(dtype)
    gathered = Gather.apply(tokens, token_of)
    assert torch.equal(gathered, tokens[token_of])
    gathered.backward(d_rows)
    exact = torch.zeros(TOKENS, width, dtype=torch.float64).index_add(0, token_of, d_rows.double())
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, exact.to(dtype))

    again = d_rows.clone().requires_grad_()
    summed = Sum.apply(again, token_of, TOKENS)
    assert torch.equal(summed, tokens.grad)
    d_tokens = torch.randn(TOKENS, width, generator=generator).to(dtype)
    summed.backward(d_tokens)
    assert again.grad is not None
    assert torch.equal(again.grad, d_tokens[token_of])


def test_gradients_may_be_spread_out_in_memory() -> None:
    token_of = torch.tensor([1, 0, 1])
    tokens = torch.zeros(2, 4, requires_grad=True)
    Gather.apply(tokens, token_of).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, 0].tolist() == [1.0, 2.0]
    placed = torch.zeros(3, 4, requires_grad=True)
    Sum.apply(placed, token_of, 2).sum().backward()
    assert placed.grad is not None
    assert placed.grad.tolist() == [[1.0] * 4] * 3


def test_no_tokens_are_no_work() -> None:
    found = places(torch.zeros(0, EXPERTS, dtype=torch.bool), 0)
    assert found is not None
    assert Gather.apply(torch.zeros(0, 4), found[0]).shape == (0, 4)
    assert Sum.apply(torch.zeros(0, 4), found[0], 3).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(4, 8, dtype=torch.float64),
        torch.zeros(8, 4).t(),
        torch.zeros(2, 4, 8),
        torch.zeros(4, 8, device="meta"),
    ],
    ids=["fp64", "turned", "three dimensions", "no CPU"],
)
def test_other_tokens_are_left_to_the_caller(tokens: torch.Tensor) -> None:
    assert not moves(tokens)
    assert moves(torch.zeros(4, 8))

"""Rows times weights in C against torch, in both of its ways."""

import math

import pytest
import torch

from moe_megatron.mcore.cpu.fast.kernels import weighing
from moe_megatron.mcore.cpu.fast.kernels.weighing import weigh, weigh_backward

ROWS, WIDTH = 37, 83  # Neither a multiple of what a processor does at once.


@pytest.fixture(params=["C", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(weighing, "_compiled", lambda: None)
    elif weighing._compiled() is None:
        pytest.skip("no C compiler on this machine")
    return str(request.param)


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_results_are_those_of_autograd(
    way: str, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    rows, d_product = numbers(ROWS, WIDTH, dtype=dtype), numbers(ROWS, WIDTH, dtype=dtype, seed=4)
    # Every other number of a longer tensor: as contiguous as a caller's weights may be.
    weights = numbers(2 * ROWS, dtype=weight_dtype)[::2]
    exact_rows, exact_weights = (x.double().requires_grad_() for x in (rows, weights))
    exact = exact_rows * exact_weights.unsqueeze(-1)
    exact.backward(d_product.double())

    product = weigh(rows, weights)
    d_rows = torch.full_like(rows, 7)
    d_weights = weigh_backward(d_product, rows, weights, d_rows)

    assert (product.dtype, d_weights.dtype) == (dtype, weight_dtype)
    # torch rounds the weights first, C does not.
    allowed = 1e-5 if dtype == torch.float32 else 2**-8 if way == "C" else 2**-7
    assert exact_rows.grad is not None
    assert exact_weights.grad is not None
    torch.testing.assert_close(product.double(), exact.detach(), rtol=allowed, atol=1e-6)
    torch.testing.assert_close(d_rows.double(), exact_rows.grad, rtol=allowed, atol=1e-6)
    coarse = weight_dtype == torch.bfloat16 or (dtype == torch.bfloat16 and way == "torch")
    torch.testing.assert_close(
        d_weights.double(), exact_weights.grad, rtol=1e-5, atol=0.1 if coarse else 1e-4
    )


def test_a_gradient_may_be_spread_out_in_memory(way: str) -> None:
    rows, weights = numbers(ROWS, WIDTH), numbers(ROWS, dtype=torch.float32)
    d_product = torch.ones(1, 1, dtype=torch.bfloat16).expand(ROWS, WIDTH)
    d_rows = torch.empty_like(rows)
    d_weights = weigh_backward(d_product, rows, weights, d_rows)
    torch.testing.assert_close(d_weights, rows.float().sum(-1), rtol=1e-5, atol=1e-4)
    assert torch.equal(d_rows, weights.bfloat16().unsqueeze(-1).expand_as(rows))


def test_a_nan_stays_one(way: str) -> None:
    rows, weights = numbers(3, WIDTH), numbers(3, dtype=torch.float32)
    rows[1, 5] = math.nan
    assert weigh(rows, weights).isnan().nonzero().tolist() == [[1, 5]]
    d_weights = weigh_backward(torch.ones_like(rows), rows, weights, torch.empty_like(rows))
    assert d_weights.isnan().tolist() == [False, True, False]


def test_every_pattern_of_bits_is_rounded_as_torch_rounds_it(way: str) -> None:
    high = torch.arange(2**16).unsqueeze(1)  # every sign, exponent and upper half of a mantissa
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (high << 16 | low).flatten()
    weights = torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(torch.float32)
    found = weigh(torch.ones(len(weights), 1, dtype=torch.bfloat16), weights).flatten()
    expected = weights.to(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))


def test_no_rows_are_no_work(way: str) -> None:
    rows, weights = numbers(0, WIDTH), numbers(0, dtype=torch.float32)
    assert weigh(rows, weights).shape == (0, WIDTH)
    assert weigh_backward(rows, rows, weights, torch.empty_like(rows)).shape == (0,)

"""SwiGLU in C against torch, in both of its ways."""

import math

import pytest
import torch

from moe_megatron.mcore.cpu.fast.kernels import swiglu as module
from moe_megatron.mcore.cpu.fast.kernels.swiglu import swiglu, swiglu_backward

ROWS, WIDTH = 37, 83  # Neither a multiple of what a processor does at once.


@pytest.fixture
def in_c() -> None:
    if module._compiled() is None:
        pytest.skip("no C compiler on this machine")


@pytest.fixture(params=["C", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(module, "_compiled", lambda: None)
    else:
        request.getfixturevalue("in_c")
    return str(request.param)


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (4 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))).to(dtype)


def outcome(both: torch.Tensor, d_product: torch.Tensor) -> list[torch.Tensor]:
    """Product, gradients of gate and up, and the product of the backward pass."""
    product, again, d_both = (torch.full_like(t, 7) for t in (d_product, d_product, both))
    swiglu(both, product)
    swiglu_backward(both, d_product.clone(), d_both, again)
    return [product, d_both, again]


def exact(both: torch.Tensor, d_product: torch.Tensor) -> list[torch.Tensor]:
    """The same by autograd in fp64."""
    inner = both.double().requires_grad_()
    gate, up = inner.chunk(2, dim=-1)
    product = torch.nn.functional.silu(gate) * up
    product.backward(d_product.double())
    assert inner.grad is not None
    return [product.detach(), inner.grad, product.detach()]


def test_results_are_those_of_autograd(way: str) -> None:
    both, d_product = numbers(ROWS, 2 * WIDTH), numbers(ROWS, WIDTH)
    # torch rounds after every step, C once.
    allowed = 2**-8 if way == "C" else 2**-5
    for ours, wanted in zip(outcome(both, d_product), exact(both, d_product), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=allowed, atol=1e-3)


@pytest.mark.usefixtures("in_c")
def test_c_rounds_the_exact_result_to_the_nearest() -> None:
    both, d_product = numbers(500, 2 * WIDTH), numbers(500, WIDTH)
    for ours, wanted in zip(outcome(both, d_product), exact(both, d_product), strict=True):
        # The fp32 result before rounding is not exact: it may lie on the other side of a tie.
        assert (ours != wanted.bfloat16()).double().mean() < 1e-3


def test_fp32_is_left_to_torch() -> None:
    both = numbers(ROWS, 2 * WIDTH, dtype=torch.float32)
    d_product = numbers(ROWS, WIDTH, dtype=torch.float32)
    for ours, wanted in zip(outcome(both, d_product), exact(both, d_product), strict=True):
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [-1e38, -300.0, -88.0, 0.0, 88.0, 300.0, 1e38])
def test_extreme_gates_give_the_limits(way: str, gate: float) -> None:
    both = torch.tensor([[gate, 2.0]]).bfloat16()
    product, d_both, _ = outcome(both, torch.ones(1, 1).bfloat16())
    rounded = both[0, 0].item()
    assert product.item() == pytest.approx(2 * max(rounded, 0.0), rel=1e-2, abs=1e-30)
    slope = 0.5 if gate == 0 else float(gate > 0)
    assert d_both[0].tolist() == pytest.approx([2 * slope, max(rounded, 0.0)], rel=1e-2, abs=1e-30)


@pytest.mark.parametrize("place", ["gate", "up", "gradient"])
def test_a_nan_stays_one(way: str, place: str) -> None:
    both, d_product = numbers(3, 2 * WIDTH), numbers(3, WIDTH)
    target, column = (d_product, 5) if place == "gradient" else (both, 5 + WIDTH * (place == "up"))
    target[1, column] = -math.nan
    product, d_both, again = outcome(both, d_product)
    assert bool(product[1, 5].isnan()) == (place != "gradient")
    assert torch.equal(product.isnan(), again.isnan())
    assert d_both[1, 5].isnan()
    assert d_both[1, 5 + WIDTH].isnan() == (place != "up")
    for result in (product, d_both):
        assert not result[[0, 2]].isnan().any()


def test_no_rows_are_no_work(way: str) -> None:
    assert [len(result) for result in outcome(numbers(0, 2 * WIDTH), numbers(0, WIDTH))] == [0] * 3


def test_threads_of_torch_share_the_rows(way: str) -> None:
    both, d_product = numbers(ROWS, 2 * WIDTH), numbers(ROWS, WIDTH)
    before = torch.get_num_threads()
    alone = outcome(both, d_product)
    torch.set_num_threads(3)
    try:
        together = outcome(both, d_product)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))

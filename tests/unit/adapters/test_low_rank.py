import pytest
import torch

from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.errors import CheckpointError


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_an_adapted_matrix_is_the_sum_that_the_formula_says():
    one = LowRank(drawn(2, 5), drawn(7, 2), scale=0.5)
    weight = drawn(7, 5)
    expected = weight.clone()
    for row in range(7):
        for column in range(5):
            expected[row, column] += 0.5 * sum(one.b[row, k] * one.a[k, column] for k in range(2))
    torch.testing.assert_close(one.merged(weight), expected)
    assert one.shape == (7, 5)
    assert one.rank == 2


def test_rows_of_a_matrix_with_magnitudes_have_them_as_their_norms():
    magnitude = drawn(7).abs() + 1
    one = LowRank(drawn(2, 5), drawn(7, 2), 0.5, magnitude)
    weight = drawn(7, 5)
    merged = one.merged(weight)
    torch.testing.assert_close(merged.norm(dim=1), magnitude)
    plain = weight + one.delta()
    torch.testing.assert_close(merged / merged.norm(dim=1, keepdim=True),
                               plain / plain.norm(dim=1, keepdim=True))  # fmt: skip


def test_a_matrix_in_bf16_is_rounded_once():
    one = LowRank(drawn(2, 5).bfloat16(), drawn(7, 2).bfloat16(), 0.5)
    weight = drawn(7, 5).bfloat16()
    exact = weight.float() + 0.5 * (one.b.float() @ one.a.float())
    assert torch.equal(one.merged(weight), exact.bfloat16())


def test_tensors_that_are_no_adapter_are_refused():
    with pytest.raises(CheckpointError, match=r"A \[3, 5\] and B \[7, 2\] are no adapter"):
        LowRank(drawn(3, 5), drawn(7, 2), 1.0)
    with pytest.raises(CheckpointError, match=r"magnitude \[5\] does not fit B \[7, 2\]"):
        LowRank(drawn(2, 5), drawn(7, 2), 1.0, drawn(5))

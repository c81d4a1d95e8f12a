"""Methods against their definitions, number by number."""

import pytest
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.inference.quantization.dense_and_sparse import dense_and_sparse
from moe_megatron.inference.quantization.least_squares import least_squares
from moe_megatron.inference.quantization.methods import (
    Method,
    Quantized,
    dequantized,
    method_of,
    register_method,
)
from moe_megatron.inference.quantization.packing import pack, pack_zeros, unpack, unpack_zeros
from moe_megatron.inference.quantization.precision import (
    Precision,
    by_usage,
    check_shape,
    precision,
)
from moe_megatron.inference.quantization.rtn import round_to_nearest

SYMMETRIC = [Precision(8), Precision(4, 32), Precision(4, 64)]
ASYMMETRIC = [Precision(4, 32, symmetric=False), Precision(4, 64, symmetric=False)]


def some(rows: int = 16, columns: int = 128, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("wanted", SYMMETRIC, ids=str)
def test_rounding_is_that_of_each_group_alone(wanted: Precision) -> None:
    matrix = some()
    found = round_to_nearest(matrix, wanted)
    size, most = wanted.group_size or 128, 2 ** (wanted.bits - 1)
    for row in range(16):
        for start in range(0, 128, size):
            group = matrix[row, start : start + size].tolist()
            scale = torch.tensor(max(map(abs, group)) / (most - 0.5)).to(torch.bfloat16)
            assert found.scales[row, start // size] == scale
            for column, weight in enumerate(group, start):
                nearest = torch.tensor(weight / scale.item()).round().clamp(-most, most - 1)
                assert found.codes[row, column] == nearest


@pytest.mark.parametrize("wanted", ASYMMETRIC, ids=str)
def test_rounding_with_zero_points_is_that_of_each_group_alone(wanted: Precision) -> None:
    matrix = some() + 0.75
    matrix[1] = matrix[1].abs() + 0.5  # 0 is the lowest number
    matrix[2] = -matrix[1]
    found = round_to_nearest(matrix, wanted)
    assert found.zeros is not None
    size = wanted.group_size
    assert size is not None
    for row in range(16):
        for start in range(0, 128, size):
            group = matrix[row, start : start + size].tolist()
            low, high = min(*group, 0.0), max(*group, 0.0)
            scale = torch.tensor((high - low) / 15).to(torch.bfloat16)
            assert found.scales[row, start // size] == scale
            zero = found.zeros[row, start // size]
            assert abs(zero - (-8 - low / scale.item())) < 0.56  # scales are rounded, too
            for column, weight in enumerate(group, start):
                nearest = torch.tensor(weight / scale.item()).round() + zero
                assert found.codes[row, column] == nearest.clamp(-8, 7)
    assert (found.zeros[1] == -8).all()
    assert (found.zeros[2] == 7).all()


@pytest.mark.parametrize("wanted", [Precision(4, 32), *ASYMMETRIC], ids=str)
@pytest.mark.parametrize("method", [round_to_nearest, least_squares, dense_and_sparse])
def test_a_group_of_zeros_stays_zeros(method: Method, wanted: Precision) -> None:
    found = method(torch.zeros(16, 64, dtype=torch.bfloat16), wanted)
    assert dequantized(found).count_nonzero() == 0


@pytest.mark.parametrize("wanted", [Precision(4, 32), ASYMMETRIC[0]], ids=str)
def test_the_largest_weights_stay_as_they_are(wanted: Precision) -> None:
    matrix = some()
    matrix[3, 7] = 40.0
    kept = dense_and_sparse(matrix, wanted)
    assert kept.outliers is not None
    assert len(kept.outliers.values) == round(0.0045 * matrix.numel())
    assert 3 * 128 + 7 in kept.outliers.index.tolist()
    assert kept.codes[3, 7] == (0 if kept.zeros is None else kept.zeros[3, 0])
    found = dequantized(kept)
    assert found[3, 7] == 40.0
    plain = dequantized(round_to_nearest(matrix, wanted))
    assert (found - matrix).norm() < 0.7 * (plain - matrix).norm()


@pytest.mark.parametrize("wanted", [*SYMMETRIC, *ASYMMETRIC], ids=str)
def test_least_squares_leaves_less_error_than_the_largest_weight_does(wanted: Precision) -> None:
    matrix = some().float()
    matrix[:, :32] = 0
    found, plain = (dequantized(it(matrix, wanted)) for it in (least_squares, round_to_nearest))
    assert found[:, :32].count_nonzero() == 0
    error, of_largest = (float((it - matrix).square().sum()) for it in (found, plain))
    most = {8: 1.0, 4: 0.85 if wanted.symmetric else 0.97}
    assert error < of_largest * most[wanted.bits]


def test_zero_points_leave_less_error_where_weights_lean_to_one_side() -> None:
    matrix = some().float() + 0.5
    for method in (round_to_nearest, least_squares):
        errors = [
            float((dequantized(method(matrix, it)) - matrix).norm())
            for it in (ASYMMETRIC[0], Precision(4, 32))
        ]
        assert errors[0] < 0.9 * errors[1]


def test_words_have_the_first_number_in_their_lowest_bits() -> None:
    codes = torch.tensor([[-8, 7, 0, 1, 2, 3, 4, 5]], dtype=torch.int8)
    assert pack(codes, 4).view(torch.uint8).tolist() == [[0xF0, 0x98, 0xBA, 0xDC]]
    codes = torch.tensor([[-128, 127, 0, 1]], dtype=torch.int8)
    assert pack(codes, 8).view(torch.uint8).tolist() == [[0, 255, 128, 129]]


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_loses_nothing(bits: int) -> None:
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 64)).to(torch.int8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


def test_zero_points_are_packed_along_the_rows() -> None:
    zeros = torch.tensor([[-8, 0], [7, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]])
    words = pack_zeros(zeros.to(torch.int8), 4)
    assert words.t().contiguous().view(torch.uint8).tolist() == [
        [0xF0, 0x98, 0xBA, 0xDC],
        [0x98, 0xBA, 0xDC, 0xFE],
    ]
    assert torch.equal(unpack_zeros(words, 4), zeros.t())


def test_a_method_of_ones_own_is_one_function() -> None:
    @register_method("to_zero")
    def to_zero(matrix: Tensor, wanted: Precision) -> Quantized:
        found = round_to_nearest(matrix, wanted)
        return Quantized(torch.zeros_like(found.codes), found.scales)

    assert method_of("to_zero") is to_zero


def test_the_most_used_experts_of_each_layer_are_hot() -> None:
    keys = [(layer, it) for layer in (1, 2) for it in range(4)]
    counts = {(1, 2): 9.0, (1, 0): 5.0, (2, 3): 1.0, (2, 1): 7.0}
    found = by_usage(keys, counts, Precision(8), Precision(4, 32), 0.5)
    assert {key for key, it in found.items() if it.bits == 8} == {(1, 2), (1, 0), (2, 3), (2, 1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: precision(3, 32), r"bits \(3\) must be 4 or 8"),
        (lambda: precision(8, 32, symmetric=False), "8 bits are symmetric"),
        (lambda: precision(4, 16), r"group_size \(16\) must be 32, 64, 128 or 256"),
        (lambda: check_shape((64, 576), Precision(4, 128)), "give 32 or 64"),
        (lambda: check_shape((24, 64), Precision(4, 32)), "multiples of 16 rows"),
        (lambda: method_of("rnt"), "Did you mean 'rtn'"),
        (lambda: by_usage([], {}, Precision(8), Precision(8), 1.0), r"hot_share \(1\.0\) must be"),
    ],
)
def test_mistakes_are_explained(wrong: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()  # type: ignore[operator]

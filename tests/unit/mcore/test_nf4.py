"""NF4 against a slow twin, number by number."""

import pytest
import torch

from moe_megatron.mcore.tuning.adapters.nf4 import _VALUES, BLOCK, Nf4


@pytest.mark.parametrize("columns", [BLOCK, 3 * BLOCK, 100, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_the_nearest_of_their_block(columns: int, dtype: torch.dtype) -> None:
    matrix = torch.randn(5, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix[2] = 0
    rounded = Nf4.of(matrix)
    expected = torch.zeros_like(matrix)
    for i, row in enumerate(matrix.float().tolist()):
        for j, number in enumerate(row):
            start = j // BLOCK * BLOCK
            largest = max(map(abs, row[start : start + BLOCK]))
            nearest = min((abs(largest * it - number), largest * it) for it in _VALUES)[1]
            expected[i, j] = nearest
    torch.testing.assert_close(rounded.matrix(), expected, rtol=1e-6, atol=1e-7)
    assert rounded.matrix().dtype == dtype
    assert torch.equal(Nf4.of(rounded.matrix()).matrix(), rounded.matrix())
    blocks = -(-columns // BLOCK)
    assert rounded.bytes == 5 * blocks * (BLOCK // 2 + 4)


def test_large_matrix_is_made_whole_part_by_part_where_it_is_asked_for() -> None:
    matrix = torch.randn(700, 3 * BLOCK, generator=torch.Generator().manual_seed(1))
    rows = [Nf4.of(row).matrix() for row in matrix.split(1)]
    place = torch.full_like(matrix, torch.nan)
    assert Nf4.of(matrix).matrix(out=place) is place
    assert torch.equal(place, torch.cat(rows))

"""Which places of rows of samples are computed."""

import pytest
import torch

from moe_megatron.mcore.loop.packed_batch import without_padding


def test_padding_is_left_out_but_for_what_fills_the_last_multiple():
    rows = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()

    # 9 places hold something; 3 more make 12, the first that are padding.
    assert without_padding(rows, 4).tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14]
    assert without_padding(rows, 9).tolist() == [0, 1, 2, 5, 10, 11, 12, 13, 14]


@pytest.mark.parametrize("multiple", [1, 2, 4, 32])
def test_all_places_stay_where_rows_are_full_or_too_few_to_fill_a_multiple(multiple):
    full = torch.zeros(2, 16, dtype=torch.bool)
    short = torch.tensor([[False, True, True]])

    assert without_padding(full, multiple).tolist() == list(range(32))
    assert len(without_padding(short, multiple)) == min(multiple, 3)

"""Columns are aligned, cover the window once, and are as many as asked for at most."""

from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.webapp.columns import columns


@given(st.integers(1, 10**6), st.integers(0, 10**5), st.integers(1, 300))
def test_columns_cover_the_window_and_align(first, length, most) -> None:
    last = first + length
    found = columns(first, last, most)
    assert len(found) <= most
    assert found[0][0] == first
    assert found[-1][1] == last
    assert [begin for begin, _ in found[1:]] == [end + 1 for _, end in found[:-1]]
    widths = {end - begin + 1 for begin, end in found[1:-1]}
    assert all(width & (width - 1) == 0 for width in widths)
    assert all((begin - 1) % width == 0 for begin, _ in found[1:] for width in widths)
    assert len(found) > most // 2 or len(found) == length + 1 or most == 1


def test_an_empty_window_has_no_columns() -> None:
    assert columns(5, 4, 10) == []

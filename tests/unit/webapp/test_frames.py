"""A frame against the same bytes computed one by one, in Python's own numbers."""

import math
import struct

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.webapp.frames import encode_frame, load_bytes


def slow_byte(count: int, counts: list[int]) -> int:
    total = sum(counts)
    if total == 0:
        return 255
    if count == 0:
        return 0
    octaves = math.log2(count * len(counts) / total)
    return min(254, max(1, round(127.5 + 31.75 * octaves)))


def test_bytes_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 10 ** rng.integers(1, 7, (5, 1)), (5, 16))
    counts[2] = 0
    counts[3, 4] = 0
    expected = [[slow_byte(n, row) for n in row] for row in counts.tolist()]
    assert load_bytes(counts).tolist() == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([[5, 5]], [[128, 128]]), ([[0, 9]], [[0, 159]]), ([[0, 0]], [[255, 255]])],
)
def test_fair_dead_and_unmeasured_have_their_values(counts, expected) -> None:
    assert load_bytes(np.array(counts)).tolist() == expected


def test_extremes_are_clamped_and_never_look_dead_or_unmeasured() -> None:
    counts = np.array([[10**9, *[1] * 255]])
    assert load_bytes(counts)[0, [0, 1]].tolist() == [254, 1]


def test_header_says_what_follows() -> None:
    frame = encode_frame(np.ones((3, 4), dtype=np.int64), 7, 9)
    assert struct.unpack("<4sIIHH", frame[:16]) == (b"MOE1", 7, 9, 3, 4)
    assert frame[16:] == bytes([128]) * 12


def test_more_experts_than_the_header_counts_are_refused() -> None:
    with pytest.raises(DataError, match=r"65,535 of each; read the history with RoutingHistory"):
        encode_frame(np.ones((1, 2**16), dtype=np.int64), 1, 1)

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moe_megatron.analytics.information import (
    entropy,
    mutual_information,
    normalized_mutual_information,
)

TABLES = arrays(np.int64, (2, 3, 4), elements=st.integers(0, 9))


def slow_mutual_information(joint: list[list[int]]) -> float:
    total = sum(map(sum, joint))
    result = 0.0
    for a, row in enumerate(joint):
        for b, count in enumerate(row):
            if count:
                of_a, of_b = sum(joint[a]), sum(line[b] for line in joint)
                result += count / total * math.log(count * total / (of_a * of_b))
    return result


@given(TABLES)
def test_mutual_information_equals_its_definition(tables: np.ndarray) -> None:
    expected = [slow_mutual_information(table.tolist()) for table in tables]
    assert mutual_information(tables) == pytest.approx(expected, abs=1e-12)


@given(TABLES)
def test_normalized_mutual_information_is_between_0_and_1(tables: np.ndarray) -> None:
    for table, value in zip(tables, normalized_mutual_information(tables), strict=True):
        varies = (table.sum(0) > 0).sum() > 1 and (table.sum(1) > 0).sum() > 1
        assert -1e-12 <= value <= 1 + 1e-12 if varies else math.isnan(value)


@pytest.mark.parametrize(
    ("joint", "value"),
    [
        ([[5, 0], [0, 5]], 1.0),
        ([[4, 4, 0, 0], [0, 0, 4, 4]], 1.0),
        ([[2, 2], [3, 3]], 0.0),
        ([[6, 2], [2, 6]], 1 - (-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25))),
    ],
)
def test_normalized_mutual_information_of_known_tables(
    joint: list[list[int]], value: float
) -> None:
    assert normalized_mutual_information(np.array(joint)) == pytest.approx(value, abs=1e-12)


def test_entropy_of_known_counts() -> None:
    assert entropy(np.array([[1, 1, 1, 1], [4, 0, 0, 0]])) == pytest.approx([math.log(4), 0.0])

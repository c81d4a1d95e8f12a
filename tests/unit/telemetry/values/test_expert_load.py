"""Each vectorized measure against the loop that its definition spells out."""

import math

import numpy as np
import pytest

from moe_megatron.telemetry.values import expert_load

COUNTS = np.array([[10, 30, 0, 60], [25, 25, 25, 25], [0, 0, 0, 0], [1, 399, 0, 0]])
DROPPED = np.array([20, 0, 0, 100])


def slow_measures(row: list[int], lost: int) -> dict[str, float]:
    total, num_experts = sum(row), len(row)
    if total == 0:
        nothing = dict.fromkeys(("imbalance", "cv", "variance"), math.nan)
        return nothing | {"drop_rate": math.nan if lost == 0 else 1.0}
    mean = total / num_experts
    variance = sum((count - mean) ** 2 for count in row) / num_experts
    return {
        "imbalance": max(row) / mean,
        "cv": math.sqrt(variance) / mean,
        "variance": variance / total**2,
        "drop_rate": lost / (total + lost),
    }


def test_measures_equal_slow_twins() -> None:
    slow = [
        slow_measures(row, lost)
        for row, lost in zip(COUNTS.tolist(), DROPPED.tolist(), strict=True)
    ]
    fast = {
        "imbalance": expert_load.imbalance(COUNTS),
        "cv": expert_load.load_cv(COUNTS),
        "variance": expert_load.load_variance(COUNTS),
        "drop_rate": expert_load.drop_rate(COUNTS, DROPPED),
    }
    for name, values in fast.items():
        np.testing.assert_allclose(values, [layer[name] for layer in slow], rtol=1e-12)


def test_load_share_sums_to_one_or_is_nan() -> None:
    np.testing.assert_allclose(expert_load.load_share(COUNTS).sum(1), [1, 1, math.nan, 1])


def test_dead_expert_mask_counts_experts_without_tokens_and_spares_empty_layers() -> None:
    mask = expert_load.dead_expert_mask(COUNTS)
    assert mask.tolist() == [
        [False, False, True, False],
        [False] * 4,
        [False] * 4,
        [False, False, True, True],
    ]


def test_part_of_maximum_is_one_for_uniform_routing() -> None:
    ratio = expert_load.part_of_maximum(np.array([math.log(8), 0.0]), 8)
    assert ratio.tolist() == pytest.approx([1.0, 0.0])
    assert expert_load.part_of_maximum(np.zeros(2), 1).tolist() == [1.0, 1.0]

"""The fewest experts that get a share of a task's tokens."""

from itertools import combinations

import numpy as np
import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.used_experts import train_used, used_experts
from moe_megatron.telemetry.values.profile import RoutingProfile


def profile(*rows: list[int]) -> RoutingProfile:
    made = RoutingProfile.empty(
        layers=tuple(range(1, len(rows) + 1)), num_experts=len(rows[0]), top_k=1
    )
    made.tokens_per_expert[:] = rows
    return made


def test_fewest_experts_that_reach_the_share_are_taken() -> None:
    first, second = used_experts(profile([10, 60, 10, 20], [25, 25, 25, 25]), 0.7)
    assert first.experts == (1, 3)
    assert first.share == 0.8
    assert first.selector == "experts@1:1,3"
    assert second.experts == (0, 1, 2)
    assert str(first) == "layer 1: 2 of 4 experts had 80.0 % of the task: 1, 3"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.8, 1.0])
def test_as_trying_all_sets_of_experts(share: float) -> None:
    counts = np.random.default_rng(0).integers(0, 20, size=(5, 7)).tolist()
    for row, chosen in zip(counts, used_experts(profile(*counts), share), strict=True):
        reaching = [
            size
            for size in range(1, 8)
            if any(sum(them) >= share * sum(row) for them in combinations(row, size))
        ]
        assert len(chosen.experts) == min(reaching)
        assert sum(row[it] for it in chosen.experts) == round(chosen.share * sum(row))


def test_all_of_the_share_leaves_out_experts_without_tokens() -> None:
    (chosen,) = used_experts(profile([5, 0, 5]), 1.0)
    assert chosen.experts == (0, 2)


def test_chosen_experts_take_the_place_of_all() -> None:
    chosen = used_experts(profile([1, 3], [4, 0]), 0.5)
    assert train_used(["all"], chosen) == ["experts@1:1", "experts@2:0"]
    assert train_used(["router", "experts"], chosen)[0] == "router"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1; try"):
        used_experts(profile([1, 1]), share)


def test_layer_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tokens in layer 2"):
        used_experts(profile([1, 1], [0, 0]), 0.5)

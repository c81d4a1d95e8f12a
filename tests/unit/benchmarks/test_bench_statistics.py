"""Intervals and shares of the bench, each against a slow and obvious twin."""

import math

import numpy as np
import pytest
import torch

from moe_megatron.benchmarks.one_run import over_capacity
from moe_megatron.benchmarks.statistics import MOST_SEEDS, paired, t_interval, verdict
from moe_megatron.routing import drop_over_capacity
from moe_megatron.routing.decision import Routing
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def slow_quantile(freedom: int) -> float:
    """Where the integral of Student's density from 0 reaches 0.475."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    x = np.linspace(0.0, 14.0, 400_001)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(x))])
    return float(np.interp(0.475, area, x))


@pytest.mark.parametrize("number", range(2, MOST_SEEDS + 1))
def test_interval_has_the_half_width_of_an_integrated_t_density(number: int) -> None:
    values = [0.0] * (number - 1) + [1.0]
    error = float(np.std(values, ddof=1)) / math.sqrt(number)
    found = t_interval(values)
    assert found.mean == pytest.approx(1 / number)
    assert found.half_width / error == pytest.approx(slow_quantile(number - 1), abs=2e-4)


def test_intervals_of_normal_values_hold_the_mean_in_95_of_100() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    held = [abs(it.mean) <= it.half_width for it in map(t_interval, draws.tolist())]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_pairs_take_away_what_a_seed_does_to_all() -> None:
    seeds = {1: 4.0, 2: 5.0, 3: 9.0}
    better = {seed: loss - 0.1 - 0.001 * seed for seed, loss in seeds.items()}
    found = paired(better, seeds)
    assert found is not None
    assert found.mean == pytest.approx(-0.102)
    assert verdict(found) == "lower"
    assert t_interval(list(better.values())).half_width > 1  # unpaired, it would be lost
    assert paired({4: 1.0}, seeds) is None


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.1, 0.1001, 0.0999], "higher"),
        ([0.1, -0.2, 0.3], "not distinguishable"),
        ([0.1], "one seed alone"),
    ],
)
def test_verdict_says_no_more_than_the_interval(differences: list[float], said: str) -> None:
    assert verdict(t_interval(differences)) == said


def test_share_over_capacity_is_what_a_capacity_drops() -> None:
    tokens, experts, top_k = 96, 8, 2
    logits_TE = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))
    logits_TE[:, 0] += 1.5
    indices_TK = logits_TE.topk(top_k).indices
    routing = Routing.of_indices(indices_TK, torch.ones(tokens, top_k), experts)
    dropped = drop_over_capacity(routing, math.ceil(1.25 * tokens * top_k / experts))
    snapshot = RoutingSnapshot(
        step=1, tokens=tokens, top_k=top_k, layers=(1,),
        tokens_per_expert=routing.tokens_per_expert.numpy()[None],
        assigned=np.array([tokens * top_k]), dropped=np.array([0]), per_layer={},
    )  # fmt: skip
    lost = tokens * top_k - int(dropped.tokens_per_expert.sum())
    assert lost > 0
    assert over_capacity(snapshot, 1.25) == pytest.approx(lost / (tokens * top_k))

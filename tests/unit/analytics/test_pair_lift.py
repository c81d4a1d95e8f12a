"""Pairs of experts: planted partners are found, loads alone are not called partners."""

import numpy as np
import pytest

from moe_megatron.analytics.pair_lift import expected_pairs, pair_lift


def choices(rng: np.random.Generator, *, partners: bool) -> np.ndarray:
    """Pairs of six experts as their loads have it, or with 4 and 5 four times as often together."""
    loads = np.array([3.0, 2.0, 2.0, 1.0, 1.0, 0.5])
    odds = np.triu(np.outer(loads, loads), 1)
    odds[4, 5] *= 4 if partners else 1
    counts = rng.multinomial(8000, odds.ravel() / odds.sum()).reshape(6, 6)
    return counts + counts.T


def test_partners_are_found_and_loads_are_not():
    rng = np.random.default_rng(0)
    planted = pair_lift(choices(rng, partners=True), with_itself=False)
    assert planted[4, 5] == pytest.approx(planted[5, 4])
    assert planted[4, 5] == np.nanmax(planted) > 1.2
    assert np.isnan(np.diag(planted)).all()
    unplanted = pair_lift(choices(rng, partners=False), with_itself=False)
    assert (unplanted[~np.eye(6, dtype=bool)] == 1.0).all()


def test_expected_pairs_keep_the_sums_and_are_products_off_the_diagonal():
    joint = choices(np.random.default_rng(1), partners=True)
    expected = expected_pairs(joint, with_itself=False)
    assert expected.sum(axis=0) == pytest.approx(joint.sum(axis=0))
    assert expected.sum(axis=1) == pytest.approx(joint.sum(axis=1))
    # of products a_i b_j, e_ik e_jl = e_il e_jk
    assert expected[0, 2] * expected[1, 3] == pytest.approx(expected[0, 3] * expected[1, 2])


def test_a_flow_of_independent_layers_has_no_lift():
    rng = np.random.default_rng(2)
    first, second = rng.choice(4, 5000, p=[0.4, 0.3, 0.2, 0.1]), rng.integers(4, size=5000)
    joint = np.zeros((4, 4), dtype=np.int64)
    for one, other in zip(first, second, strict=True):
        joint[one, other] += 1
    loads = [[(it == expert).sum() for expert in range(4)] for it in (first, second)]
    by_hand = [[one * other / 5000 for other in loads[1]] for one in loads[0]]
    assert expected_pairs(joint, with_itself=True) == pytest.approx(np.array(by_hand))
    assert (pair_lift(joint, with_itself=True) == 1.0).all()
    bound = joint + 400 * np.eye(4, dtype=np.int64)
    assert (np.diag(pair_lift(bound, with_itself=True)) > 1).all()


def test_an_expert_without_tokens_has_no_lift():
    lift = pair_lift(np.array([[5, 0], [0, 0]]), with_itself=True)
    assert lift[0, 0] == 1.0
    assert np.isnan(lift[1]).all()

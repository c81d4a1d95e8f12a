"""What pairs of steps show, against costs and coin tosses that are known."""

import math
from itertools import accumulate

import numpy as np
import pytest

from benchmarks.paired import Cost, cost, median_interval

PATTERN = (True, False, False, True)


def steps(pairs: int, *, without: float, extra: float) -> tuple[list[bool], list[float]]:
    """On off, off on, ...; each step without the thing takes a little longer than the last."""
    on = [PATTERN[i % 4] for i in range(2 * pairs)]
    return on, [without + extra * is_on + 1e-6 * i for i, is_on in enumerate(on)]


def found(*, low: float, high: float) -> Cost:
    """A cost with this interval, in per cent of a step."""
    return Cost(pairs=9, off_ms=100.0, on_ms=100.0, difference_ms=low, interval_ms=(low, high))


def test_cost_of_a_constant_is_that_constant_and_drift_cancels() -> None:
    result = cost(*steps(40, without=0.1, extra=0.002))
    assert result.pairs == 40
    assert result.difference_ms == pytest.approx(2.0, abs=1e-2)
    assert result.off_ms == pytest.approx(100.0, rel=1e-3)
    assert result.share == pytest.approx(0.02, rel=1e-2)
    assert result.verdict() == "not under 1 %"


def test_one_delayed_step_hardly_moves_the_cost() -> None:
    on, seconds = steps(40, without=0.1, extra=0.0005)
    seconds[20] += 3600
    result = cost(on, seconds)
    assert result.difference_ms == pytest.approx(0.5, abs=1e-2)
    assert result.verdict() == "under 1 %"


def test_first_steps_are_left_out() -> None:
    on, seconds = steps(10, without=0.1, extra=0.0)
    seconds[0] = 99.0
    assert cost(on, seconds, warm_up=4).pairs == 8


def test_last_step_without_a_partner_is_left_out() -> None:
    on, seconds = steps(10, without=0.1, extra=0.0)
    assert cost(on[:-1], seconds[:-1]).pairs == 9


def test_no_pair_is_refused_with_the_remedy() -> None:
    message = r"^3 steps leave no pair after 2 others; allow more time or steps\.$"
    with pytest.raises(ValueError, match=message):
        cost([True, False, False], [1.0] * 3, warm_up=2)


def test_pair_of_one_kind_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"one kind after 1 others; the number .* must be even\.$"):
        cost([True, False, False, True, True], [1.0] * 5, warm_up=1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-2.0, 0.9, "under 1 %"),
        (0.2, 0.99, "under 1 %"),
        (0.2, 1.0, "not enough pairs in the time"),
        (-1.6, 7.4, "not enough pairs in the time"),
        (1.0, 1.2, "not under 1 %"),
    ],
)
def test_verdict_follows_from_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert found(low=low, high=high).verdict() == verdict


def test_verdict_names_another_limit() -> None:
    assert found(low=1.0, high=4.0).verdict(0.05) == "under 5 %"


def test_few_pairs_have_no_interval_and_decide_nothing() -> None:
    assert median_interval([0.0] * 5) is None
    result = cost(*steps(5, without=0.1, extra=0.0))
    assert result.share_interval is None
    assert result.verdict() == "not enough pairs in the time"


@pytest.mark.parametrize("number", [6, 7, 8, 20, 101])
def test_interval_is_the_narrowest_that_misses_at_most_one_time_in_twenty(number: int) -> None:
    interval = median_interval([float(i) for i in range(number)])
    assert interval is not None
    place = int(interval[0])
    assert interval[1] == number - 1 - place
    ways = list(accumulate(math.comb(number, k) for k in range(place + 2)))
    assert 2 * ways[place] / 2**number <= 0.05 < 2 * ways[place + 1] / 2**number


def test_interval_covers_the_median_of_a_lopsided_distribution() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        interval = median_interval(random.exponential(size=30).tolist())
        assert interval is not None
        covered += interval[0] <= math.log(2) <= interval[1]
    assert covered >= 0.93 * 400

"""Nobody beats Belady, and Belady is what trying everything finds."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_megatron.inference.cache.advice import advice, best_policy, outcomes
from moe_megatron.inference.cache.policies import Key, policies
from moe_megatron.inference.cache.simulator import OPTIMUM, most_used, simulate
from moe_megatron.inference.cache.trace import Trace, Traced

ABOUT = Traced(layers=2, experts=4, top_k=1, expert_bytes=1_000_000, model="small")
TOKENS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30)


def trace_of(tokens: list[tuple[int, int]]) -> Trace:
    return Trace(ABOUT, tuple(((first,), (second,)) for first, second in tokens))


@given(tokens=TOKENS, slots=st.integers(2, 8), known=st.booleans())
def test_no_policy_is_better_than_the_optimum(
    tokens: list[tuple[int, int]], slots: int, known: bool
) -> None:
    trace = trace_of(tokens)
    counts = trace.counts() if known else None
    best = simulate(trace, slots, OPTIMUM, counts)
    for name in policies():
        tally = simulate(trace, slots, name, counts)
        assert tally.hits + tally.misses == best.hits + best.misses == 2 * len(tokens)
        if counts is None:  # with counts they begin with other experts in memory
            assert tally.hits <= best.hits


@settings(max_examples=40)
@given(tokens=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=7))
def test_the_optimum_is_what_trying_everything_finds(tokens: list[tuple[int, int]]) -> None:
    trace = trace_of(tokens)
    order = [(layer, it) for layer, experts in trace.requests() for it in experts]

    @cache
    def most(place: int, there: frozenset[Key]) -> int:
        if place == len(order):
            return 0
        key = order[place]
        if key in there:
            return 1 + most(place + 1, there)
        ways = [there]
        if len(there) < 3:
            ways.append(there | {key})
        else:
            ways += [there - {it} | {key} for it in there]
        return max(most(place + 1, it) for it in ways)

    assert simulate(trace, 3, OPTIMUM).hits == most(0, frozenset())


def test_the_second_half_is_judged_and_the_first_one_known() -> None:
    # Expert 0 is used in the first half alone: who trusts counts keeps it, and misses expert 3.
    tokens = [(0, 0)] * 30 + [(3, 3)] * 30
    (outcome,) = outcomes(trace_of(tokens), [0.25])
    assert outcome.slots == 2
    assert outcome.hit_rates["static"] == 0.0
    assert outcome.hit_rates["lru"] == pytest.approx(58 / 60)
    assert outcome.best == "lru" == best_policy(trace_of(tokens), 2)
    assert outcome.of_optimum == pytest.approx(1.0)
    assert outcome.bytes_a_pass == pytest.approx(2 * 1_000_000 / 30)
    assert advice([outcome]).startswith("0.002 GB (25% of the experts) with lru: it finds 96.7%")


def test_sizes_are_as_large_as_they_must_be_and_as_all_experts_at_most() -> None:
    found = outcomes(trace_of([(0, 1), (2, 3)] * 4), [0.01, 0.5, 7.0])
    assert [it.slots for it in found] == [2, 4, 8]


def test_the_most_used_come_first() -> None:
    assert most_used({(1, 0): 2.0, (0, 3): 5.0, (0, 1): 2.0}) == [(0, 3), (0, 1), (1, 0)]

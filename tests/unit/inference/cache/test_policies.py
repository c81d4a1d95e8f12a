"""Policies against slow, obvious twins that look at all that has been used."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import (
    Key,
    Policy,
    WeightedLeastRecentlyUsed,
    make_policy,
    policies,
    register_policy,
)

KEYS = st.tuples(st.integers(0, 1), st.integers(0, 4))
USES = st.lists(KEYS, min_size=1, max_size=60)


def recency(uses: Sequence[Key], key: Key) -> float:
    """When it was used last."""
    return max(place for place, it in enumerate(uses) if it == key)


def frequency(uses: Sequence[Key], key: Key) -> tuple[int, float]:
    """How often it was used; of equal ones, when."""
    return uses.count(key), recency(uses, key)


def weighted(uses: Sequence[Key], key: Key) -> float:
    """The sum of what its uses are worth now."""
    now, times, seen = 0.0, [], set[Key]()
    for it in uses:
        now += 1.0 / (WeightedLeastRecentlyUsed.half_life * max(len(seen), 1))
        seen.add(it)
        if it == key:
            times.append(now)
    return sum(2.0 ** (it - now) for it in times)


TWINS: dict[str, Callable[[Sequence[Key], Key], object]] = {
    "lru": recency,
    "lfu": frequency,
    "weighted_lru": weighted,
}


@pytest.mark.parametrize("name", TWINS)
@given(uses=USES, pinned=st.sets(KEYS, max_size=3))
def test_the_lowest_leaves(name: str, uses: list[Key], pinned: set[Key]) -> None:
    policy = make_policy(name, {})
    for key in uses:
        policy.used(key)
    there = set(uses)
    while free := there - pinned:
        victim = policy.victim((9, 9), pinned)
        assert victim in free
        assert TWINS[name](uses, victim) == pytest.approx(  # equal sums leave in any order
            min(TWINS[name](uses, it) for it in free)  # type: ignore[type-var]
        )
        policy.left(victim)
        there.discard(victim)
    assert policy.victim((9, 9), pinned) is None


def test_what_a_profile_has_counted_most_stays() -> None:
    policy = make_policy("static", {(0, 0): 5.0, (0, 1): 3.0, (0, 2): 4.0})
    policy.used((0, 0))
    policy.used((0, 1))
    assert policy.victim((0, 2), ()) == (0, 1)
    assert policy.victim((0, 2), [(0, 1)]) is None  # (0, 0) was counted more
    assert policy.victim((1, 0), ()) is None  # never counted
    policy.left((0, 1))
    policy.used((0, 2))
    assert policy.victim((0, 1), ()) is None


def test_long_use_keeps_a_small_heap() -> None:
    policy = make_policy("lru", {})
    for place in range(10_000):
        policy.used((0, place % 7))
    assert len(policy._heap) < 200  # type: ignore[attr-defined]
    assert policy.victim((1, 0), ()) == (0, 10_000 % 7)


def test_one_from_outside_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_megatron.inference.cache import policies as home

    monkeypatch.setattr(home, "_POLICIES", dict(home._POLICIES))

    @register_policy("oldest")
    class Oldest:
        def __init__(self, counts: object) -> None:
            self.order: list[Key] = []

        def used(self, key: Key) -> None:
            if key not in self.order:
                self.order.append(key)

        def victim(self, incoming: Key, pinned: object) -> Key | None:
            return self.order[0]

        def left(self, key: Key) -> None:
            self.order.remove(key)

    made: Policy = make_policy("oldest", {})
    assert isinstance(made, Oldest)
    assert "oldest" in policies()


def test_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"policy \('lrU'\) must be lru, lfu.*Did you mean 'lru'"):
        make_policy("lrU", {})

"""Policies: which expert leaves memory when another one must come in.

A policy sees keys in the order in which they are used, and nothing else: neither bytes nor time.
Another one is a class with the three methods of `Policy`, made from the counts of a profile:

    @register_policy("oldest")
    class Oldest:
        def __init__(self, counts): ...
"""

import heapq
from collections.abc import Callable, Collection, Mapping
from math import log2
from typing import Protocol

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError

Key = tuple[int, int]
"""An expert: its layer, and its number in that layer, both from 0."""
Counts = Mapping[Key, float]
"""How often each expert was used before, as in a routing profile; may be empty."""
Rank = tuple[float, ...]


class Policy(Protocol):
    """Decides who leaves."""

    def used(self, key: Key) -> None:
        """Note that an expert is used; it is in memory, or comes in now."""

    def victim(self, incoming: Key, pinned: Collection[Key]) -> Key | None:
        """Who leaves for `incoming`, of those in memory without `pinned`; None: nobody does."""

    def left(self, key: Key) -> None:
        """Note that an expert has left memory."""


_POLICIES: dict[str, Callable[[Counts], Policy]] = {}


def register_policy[Made: Callable[[Counts], Policy]](name: str) -> Callable[[Made], Made]:
    """Register what makes a policy from counts, as a decorator."""

    def register(made: Made) -> Made:
        _POLICIES[name] = made
        return made

    return register


def policies() -> tuple[str, ...]:
    """The names of all policies."""
    return tuple(_POLICIES)


def make_policy(name: str, counts: Counts) -> Policy:
    """A new policy of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _POLICIES:
        raise ConfigError(
            f"policy ({name!r}) must be {join_words([*_POLICIES])}.{nearest(name, _POLICIES)}"
        )
    return _POLICIES[name](counts)


class Ranked:
    """A policy that ranks an expert whenever it is used; the lowest leaves.

    A rank changes by use alone, so that a heap finds the lowest; entries of old ranks are skipped.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.clock = 0
        self._rank: dict[Key, Rank] = {}
        self._heap: list[tuple[Rank, Key]] = []

    def rank(self, key: Key) -> Rank:
        """The rank of an expert that is used now, at `clock`."""
        raise NotImplementedError

    def used(self, key: Key) -> None:
        """Note that an expert is used."""
        self.clock += 1
        self._rank[key] = self.rank(key)
        heapq.heappush(self._heap, (self._rank[key], key))
        if len(self._heap) > 4 * len(self._rank) + 64:
            self._heap = [(rank, it) for it, rank in self._rank.items()]
            heapq.heapify(self._heap)

    def victim(self, incoming: Key, pinned: Collection[Key]) -> Key | None:
        """The lowest in memory without `pinned`."""
        passed, found = [], None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if self._rank.get(entry[1]) == entry[0]:
                passed.append(entry)
                found = None if entry[1] in pinned else entry[1]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found

    def left(self, key: Key) -> None:
        """Note that an expert has left memory."""
        self._rank.pop(key, None)


@register_policy("lru")
class LeastRecentlyUsed(Ranked):
    """Who was not used for the longest time leaves."""

    def rank(self, key: Key) -> Rank:
        """When it was used."""
        return (self.clock,)


@register_policy("lfu")
class LeastFrequentlyUsed(Ranked):
    """Who was used least often leaves; what a profile counted is not forgotten, nor earlier stays.

    Of several, who was not used for the longest time.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts)
        self._uses: dict[Key, float] = dict(counts)

    def rank(self, key: Key) -> Rank:
        """How often it was used, and when."""
        self._uses[key] = self._uses.get(key, 0.0) + 1.0
        return (self._uses[key], self.clock)


@register_policy("weighted_lru")
class WeightedLeastRecentlyUsed(Ranked):
    """Who has the smallest sum over its uses of 2 ** (-age / half-life) leaves (LRFU).

    The half-life is four times as many uses as there are experts that were seen, so that an expert
    of the usual share is used four times in it. From one use to the next all sums shrink by one
    factor, so that their order is that of log2(sum) + now, which stays.

    Lee et al., "LRFU: a spectrum of policies that subsumes the least recently used and least
    frequently used policies", IEEE Transactions on Computers 50 (2001).
    """

    half_life = 4.0

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts)
        self._height: dict[Key, float] = {}
        self._now = 0.0

    def rank(self, key: Key) -> Rank:
        """log2(sum) + now, in half-lives."""
        self._now += 1.0 / (self.half_life * max(len(self._height), 1))
        before = self._height.get(key)
        summed = 1.0 if before is None else 1.0 + 2.0 ** max(before - self._now, -1000.0)
        self._height[key] = log2(summed) + self._now
        return (self._height[key],)


@register_policy("static")
class Static:
    """Those that a profile has counted most stay; whoever it counted less is never kept."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._heap: list[tuple[float, Key]] = []
        self._there: set[Key] = set()

    def used(self, key: Key) -> None:
        """Note that an expert is used."""
        if key not in self._there:
            self._there.add(key)
            heapq.heappush(self._heap, (self._counts.get(key, 0.0), key))

    def victim(self, incoming: Key, pinned: Collection[Key]) -> Key | None:
        """The least counted, if `incoming` was counted more."""
        kept, found = [], None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if entry[1] in self._there:
                kept.append(entry)
                found = None if entry[1] in pinned else entry[1]
        for entry in kept:
            heapq.heappush(self._heap, entry)
        if found is None or self._counts.get(found, 0.0) >= self._counts.get(incoming, 0.0):
            return None
        return found

    def left(self, key: Key) -> None:
        """Note that an expert has left memory."""
        self._there.discard(key)

"""What a cache of some size and policy would have done on a trace, and the best that any could.

Belady's rule throws out what is needed last: no other order has fewer misses, and nobody can follow
it who does not know the future (L. A. Belady, "A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5, 1966). Here it may also read an expert beside the
cache, as the policies may.
"""

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping
from math import inf

from moe_megatron.inference.cache.policies import Counts, Key, make_policy
from moe_megatron.inference.cache.residency import Residency, Tally, check_slots
from moe_megatron.inference.cache.trace import Trace

OPTIMUM = "belady"
"""The name of what nobody can beat."""


def simulate(trace: Trace, slots: int, policy: str, counts: Counts | None = None) -> Tally:
    """Replay a trace.

    Args:
        trace: What was needed.
        slots: How many experts fit.
        policy: A registered policy, or "belady".
        counts: What a profile knew before; None: nothing. Its most used are in memory at first.

    Raises:
        ConfigError: There is no such policy, or there are too few slots.
    """
    known = {} if counts is None else counts
    if policy == OPTIMUM:
        return _optimum(trace, slots, known)
    about = trace.about
    memory = Residency(slots, about.layers, about.top_k, make_policy(policy, known))
    for key in most_used(known):
        if memory.place(key) is None:
            break
    for layer, experts in trace.requests():
        memory.request(layer, experts)
    return memory.tally


def most_used(counts: Counts) -> list[Key]:
    """Experts by falling count; of equal ones the lower layer and number first."""
    return sorted(counts, key=lambda key: (-counts[key], key))


def _optimum(trace: Trace, slots: int, counts: Counts) -> Tally:
    """Belady's rule with bypass, one expert after the other."""
    about = trace.about
    check_slots(slots, about.layers, about.top_k)
    order = [(layer, it) for layer, experts in trace.requests() for it in experts]
    future = _Future(order)
    there: dict[Key, float] = {}
    heap: list[tuple[float, Key]] = []
    tally = Tally()

    def put(key: Key, following: float) -> None:
        there[key] = following
        heapq.heappush(heap, (-following, key))

    for key in most_used(counts)[:slots]:
        put(key, future.after(key, -1))
    for now, key in enumerate(order):
        following = future.after(key, now)
        if key in there:
            tally.hits += 1
            put(key, following)
            continue
        tally.misses += 1
        if len(there) < slots:
            put(key, following)
            continue
        last = _last(heap, there)
        if there[last] > following:
            del there[last]
            tally.evictions += 1
            put(key, following)
        else:
            tally.beside += 1
    return tally


def _last(heap: list[tuple[float, Key]], there: Mapping[Key, float]) -> Key:
    """Who in memory is needed last."""
    while there.get(heap[0][1]) != -heap[0][0]:
        heapq.heappop(heap)
    return heap[0][1]


class _Future:
    """When each expert is needed again."""

    def __init__(self, order: Collection[Key]) -> None:
        self._at: dict[Key, list[int]] = defaultdict(list)
        for place, key in enumerate(order):
            self._at[key].append(place)

    def after(self, key: Key, now: int) -> float:
        """The next place after `now`; infinite if there is none."""
        places = self._at.get(key, [])
        found = bisect_right(places, now)
        return places[found] if found < len(places) else inf

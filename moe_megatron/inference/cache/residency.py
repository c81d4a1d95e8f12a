"""Which expert is in which slot of memory, and who leaves for whom.

The cache and the simulator both run this code, so that what the simulator says of a trace is what
the cache would have done. It knows no bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_megatron.config.checks import clipped
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import Key, Policy


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of the experts that a layer needs now."""

    there: dict[int, int]
    """Slots of those that are in memory, by expert."""
    to_read: dict[int, int]
    """Slots of those that must be read, and stay."""
    beside: tuple[int, ...]
    """Those that must be read, and do not stay."""


@dataclass(slots=True)
class Tally:
    """How requests went, counted in experts."""

    hits: int = 0
    misses: int = 0
    """Those that had to be read, whether or not they stayed."""
    beside: int = 0
    """Misses that did not stay."""
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses); nan where nothing was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else float("nan")


def least_slots(layers: int, top_k: int) -> int:
    """The fewest slots with which anything that comes back is still there: top_k in each layer."""
    return layers * top_k


def check_slots(slots: int, layers: int, top_k: int) -> None:
    """Refuse a memory for fewer than `least_slots` experts.

    Raises:
        ConfigError: There are too few slots; the message has the least number.
    """
    least = least_slots(layers, top_k)
    if slots < least:
        raise ConfigError(
            f"a cache for {clipped(str(slots))} experts is too small: a token uses {top_k} in "
            f"each of {layers} layers, and with fewer than {least} none of them would be left "
            f"when the next token comes; give it room for {least}."
        )


class Residency:
    """The slots of a memory for experts.

    Args:
        slots: How many experts fit, `least_slots` at least.
        layers: Number of layers with experts.
        top_k: Experts of a token.
        policy: Decides who leaves.

    Raises:
        ConfigError: There are too few slots; the message has the least number.
    """

    def __init__(self, slots: int, layers: int, top_k: int, policy: Policy) -> None:
        check_slots(slots, layers, top_k)
        self.tally = Tally()
        self._policy = policy
        self._slot_of: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._share = slots // layers

    def __contains__(self, key: Key) -> bool:
        return key in self._slot_of

    def __len__(self) -> int:
        return len(self._slot_of)

    def request(self, layer: int, experts: Sequence[int]) -> Answer:
        """Ask for the experts that a layer needs now, each once.

        None of them leaves for another of them. Where they are more than a layer's share of the
        slots, as those of a long prompt, those that are not there take free slots alone: they would
        throw out what the next tokens need.
        """
        keys = [(layer, it) for it in experts]
        there = {it: self._slot_of[layer, it] for it in experts if (layer, it) in self._slot_of}
        crowd = len(keys) > self._share
        for it in there:
            self._policy.used((layer, it))
        to_read: dict[int, int] = {}
        beside = []
        pinned = frozenset(keys)
        for expert in experts:
            if expert in there:
                continue
            slot = self._slot_for((layer, expert), pinned, crowd=crowd)
            if slot is None:
                beside.append(expert)
            else:
                to_read[expert] = slot
        self.tally.hits += len(there)
        self.tally.misses += len(to_read) + len(beside)
        self.tally.beside += len(beside)
        return Answer(there, to_read, tuple(beside))

    def place(self, key: Key) -> int | None:
        """A slot for an expert that shall be there before it is needed; None if none is free."""
        return None if key in self._slot_of or not self._free else self._put(key)

    def forget(self, key: Key) -> None:
        """Free the slot of an expert that could not be read."""
        self._policy.left(key)
        self._free.append(self._slot_of.pop(key))

    def _slot_for(self, key: Key, pinned: frozenset[Key], *, crowd: bool) -> int | None:
        if not self._free and not crowd:
            victim = self._policy.victim(key, pinned)
            if victim is not None:
                self.forget(victim)
                self.tally.evictions += 1
        return self._put(key) if self._free else None

    def _put(self, key: Key) -> int:
        slot = self._free.pop()
        self._slot_of[key] = slot
        self._policy.used(key)
        return slot

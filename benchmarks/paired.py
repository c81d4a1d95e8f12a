"""What a thing costs, from neighbouring steps with and without it, and whether that is certain.

The steps of a pair lie next to each other, so that what else the machine does hits both. The cost
is the median of the differences. Its interval comes from their order alone and assumes no
distribution: a step that something else delayed moves it by one place, however long it took. The
number of pairs is what time allows and does not depend on what they show, as looking again and
again until the answer pleases would find it too often. It does not know what is switched.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT = 0.01
"""What a cost shall be under, as a share of a step without."""
_ONCE_IN = 20
"""In how many times an interval may miss once the median it is for: in 5 %."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a thing costs a step; times in milliseconds."""

    pairs: int
    off_ms: float
    """Median step without it."""
    on_ms: float
    """Median step with it."""
    difference_ms: float
    """Median of the differences within pairs."""
    interval_ms: tuple[float, float] | None
    """95 % interval of that median; None where there are too few pairs for one."""

    @property
    def share(self) -> float:
        """The difference as a share of a step without."""
        return self.difference_ms / self.off_ms

    @property
    def share_interval(self) -> tuple[float, float] | None:
        """The interval, likewise."""
        if self.interval_ms is None:
            return None
        low, high = self.interval_ms
        return low / self.off_ms, high / self.off_ms

    def verdict(self, limit: float = LIMIT) -> str:
        """Whether the cost is under a limit, as `verdict` says it."""
        return verdict(self.share_interval, limit)


def verdict(interval: tuple[float, float] | None, limit: float = LIMIT) -> str:
    """Whether a cost is under a limit.

    Args:
        interval: Of the cost, as shares of a step without; None where there is none.
        limit: Likewise a share.

    Returns:
        "under 1 %" where the whole interval is, "not under 1 %" where none of it is, and "not
        enough pairs in the time" where the pairs leave it open.
    """
    words = f"under {100 * limit:g} %"
    if interval is not None:
        low, high = interval
        if high < limit:
            return words
        if low >= limit:
            return f"not {words}"
    return "not enough pairs in the time"


def cost(on: Sequence[bool], seconds: Sequence[float], warm_up: int = 0) -> Cost:
    """Compare the two kinds of steps of a run.

    Args:
        on: Whether the thing was on, for each step; a pair has one step of each kind.
        seconds: What each step took.
        warm_up: Steps to leave out at the start.

    Raises:
        ValueError: No pair is left, or a pair has two steps of one kind.
    """
    steps = list(zip(on, seconds, strict=True))[warm_up:]
    pairs = list(zip(steps[::2], steps[1::2], strict=False))
    if not pairs:
        raise ValueError(
            f"{len(on)} steps leave no pair after {warm_up} others; allow more time or steps."
        )
    if any(first[0] == second[0] for first, second in pairs):
        raise ValueError(
            f"a pair has two steps of one kind after {warm_up} others; the number of others must "
            "be even."
        )
    with_it = [1e3 * max(pair)[1] for pair in pairs]
    without = [1e3 * min(pair)[1] for pair in pairs]
    differences = [a - b for a, b in zip(with_it, without, strict=True)]
    return Cost(
        pairs=len(pairs),
        off_ms=statistics.median(without),
        on_ms=statistics.median(with_it),
        difference_ms=statistics.median(differences),
        interval_ms=median_interval(differences),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a median: two of the values, as far from the ends as is allowed.

    How many values lie below the true median is a matter of tossing coins.

    Returns:
        None for fewer than six values, of which even the extremes miss it too often.
    """
    ordered, number = sorted(values), len(values)
    place, ways = 0, 1  # of tosses that let at most `place` values lie below
    while 2 * ways * _ONCE_IN <= 2**number:
        place += 1
        ways += math.comb(number, place)
    return None if place == 0 else (ordered[place - 1], ordered[number - place])

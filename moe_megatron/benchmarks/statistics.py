"""What a few seeds can say: intervals of a mean, and of a difference between two.

Runs of one seed see the same batches in the same order, so routers are compared seed by seed, and
what a seed does to all of them cancels out. It does not know what was measured.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["lower", "higher", "not distinguishable", "one seed alone", "reference"]

MOST_SEEDS = 31
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""The 0.975 quantile of Student's t with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean, and where the true one lies with a confidence of 95 %; NaN where one seed tells."""

    mean: float
    half_width: float
    number: int

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half_width


def t_interval(values: Sequence[float]) -> Interval:
    """Mean +- t_(n-1, 0.975) s / sqrt(n), for independent normal values.

    Args:
        values: 1 to 31 of them.
    """
    number, mean = len(values), statistics.fmean(values)
    if number < 2:
        return Interval(mean=mean, half_width=math.nan, number=number)
    error = statistics.stdev(values) / math.sqrt(number)
    return Interval(mean=mean, half_width=_T975[number - 2] * error, number=number)


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    """The interval of value less reference over the seeds that both have; None if there is none."""
    both = sorted(values.keys() & reference.keys())
    return t_interval([values[seed] - reference[seed] for seed in both]) if both else None


def verdict(difference: Interval) -> Verdict:
    """What an interval of a difference says; nothing, if it reaches over 0."""
    if math.isnan(difference.half_width):
        return "one seed alone"
    if difference.high < 0:
        return "lower"
    return "higher" if difference.low > 0 else "not distinguishable"

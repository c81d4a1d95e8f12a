"""Which policy and size a model needs, by replaying its own trace.

Policies that learn are taught by the first half and judged, as all are, by the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from moe_megatron.inference.cache.policies import Counts, policies
from moe_megatron.inference.cache.residency import least_slots
from moe_megatron.inference.cache.simulator import OPTIMUM, simulate
from moe_megatron.inference.cache.trace import Trace

SHARES = (0.125, 0.25, 0.5, 0.75)
"""Of all experts, in memory."""
_CLOSE = 0.9
"""Of the hit rate of twice the size: what is called enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A size, and the hit rate of each policy and of Belady's rule at it."""

    slots: int
    share: float
    """Of all experts."""
    gigabytes: float
    hit_rates: dict[str, float]
    bytes_a_pass: float
    """Bytes that the best policy reads for each forward pass."""

    @property
    def best(self) -> str:
        """The policy with the highest hit rate, the first of equal ones."""
        reached = {name: it for name, it in self.hit_rates.items() if name != OPTIMUM}
        return max(reached, key=lambda name: reached[name])

    @property
    def of_optimum(self) -> float:
        """The best hit rate over Belady's."""
        optimum = self.hit_rates[OPTIMUM]
        return self.hit_rates[self.best] / optimum if optimum else 1.0


def outcomes(
    trace: Trace, shares: Sequence[float] = SHARES, counts: Counts | None = None
) -> list[Outcome]:
    """Replay the second half of a trace at several sizes.

    Args:
        trace: What a model needed.
        shares: Sizes, as shares of all experts; too small ones are made as large as they must be.
        counts: What a profile knows; None: what the first half of the trace says.

    Raises:
        DataError: The trace has less than two forward passes.
    """
    first, second = trace.halves()
    known = first.counts() if counts is None else counts
    about = trace.about
    least = least_slots(about.layers, about.top_k)
    sizes = sorted({min(max(round(it * about.every), least), about.every) for it in shares})
    return [_outcome(second, slots, known) for slots in sizes]


def best_policy(trace: Trace, slots: int, counts: Counts | None = None) -> str:
    """The policy with the highest hit rate at a size; what `policy="auto"` is."""
    first, second = trace.halves()
    known = first.counts() if counts is None else counts
    return max(policies(), key=lambda name: simulate(second, slots, name, known).hits)


def advice(found: Sequence[Outcome]) -> str:
    """What to do, in a sentence."""
    enough = next(
        (
            one
            for one, other in pairwise(found)
            if one.hit_rates[one.best] >= _CLOSE * other.hit_rates[other.best]
        ),
        found[-1],
    )
    return (
        f"{enough.gigabytes:.3g} GB ({enough.share:.0%} of the experts) with {enough.best}: it "
        f"finds {enough.hit_rates[enough.best]:.1%} in memory, {enough.of_optimum:.0%} of what any "
        f"policy could, and reads {enough.bytes_a_pass / 1e6:.3g} MB for a forward pass."
    )


def _outcome(trace: Trace, slots: int, counts: Counts) -> Outcome:
    tallies = {name: simulate(trace, slots, name, counts) for name in (*policies(), OPTIMUM)}
    rates = {name: it.hit_rate for name, it in tallies.items()}
    about = trace.about
    least = min(it.misses for name, it in tallies.items() if name != OPTIMUM)
    return Outcome(
        slots=slots,
        share=slots / about.every,
        gigabytes=slots * about.expert_bytes / 1e9,
        hit_rates=rates,
        bytes_a_pass=least * about.expert_bytes / len(trace.passes),
    )

"""What a router remembers from one step to the next: a bias, a threshold.

A router stays a pure function. It is given its state, and says in `Routing.observed` what its
tokens add to this step's sums. The engine adds these up over the micro-batches and processes of a
global batch, each token once, and then asks for the state of the next step. So the state is the
same under every layout, it changes only between steps, and no token's routing depends on another of
the same step. Evaluation reads it and leaves it as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]
"""Tensors by name. All are small: a few numbers for each expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterState:
    """The state of a router, as three pure functions."""

    first: Callable[[int], State]
    """From the number of experts to the state before the first step, in float32."""

    sums: Callable[[int], State]
    """From the number of experts to zeros of the shapes that `Routing.observed` has. They are
    summed in float64, which is exact for counts."""

    updated: Callable[..., State]
    """`(state, sums, *, top_k, <options>)` to the state of the next step, with all options of the
    router as keywords; the sums are those of a global batch, in float64."""

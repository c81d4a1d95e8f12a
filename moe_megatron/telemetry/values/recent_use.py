"""Which experts are dead: those that no token has reached in the last `RECENT_STEPS` steps.

Metric, alert, console and report all mean this. It remembers one step number for each expert, so it
costs the same however long it looks back. It does not know why an expert gets no tokens.
"""

from typing import Protocol

import numpy as np

from moe_megatron.telemetry.values.expert_load import BoolArray, Int64Array

RECENT_STEPS = 100
"""How far back one looks; one step says little where tokens are few, and a whole run hides what
died late or has recovered."""


class _Step(Protocol):
    @property
    def step(self) -> int: ...
    @property
    def tokens_per_expert(self) -> Int64Array: ...


class RecentUse:
    """When each expert last had a token. Add steps in their order."""

    def __init__(self) -> None:
        self.last_step = 0
        """The newest step added."""
        self._first_step = 0
        self._used: Int64Array | None = None

    @property
    def first_step(self) -> int:
        """The first of the steps looked at: there may be fewer than `RECENT_STEPS`."""
        return max(self._first_step, self.last_step - RECENT_STEPS + 1)

    def add(self, routing: _Step) -> None:
        """Add one step."""
        if self._used is None:
            self._first_step = routing.step
            self._used = np.full(routing.tokens_per_expert.shape, routing.step - 1)
        self.last_step = routing.step
        self._used[routing.tokens_per_expert > 0] = routing.step

    def dead(self) -> BoolArray:
        """The dead experts; none in a layer that had no token at all. [L, E]"""
        assert self._used is not None, "no step was added"
        used = self._used >= self.first_step
        return ~used & used.any(axis=1, keepdims=True)

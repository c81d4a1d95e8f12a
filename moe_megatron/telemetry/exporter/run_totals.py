"""What a run has done so far, as exact sums that a resumed run continues.

The sums are those of metrics.jsonl and of the routing profile, to the unit. They do not know how
they are published, only that what was published once must never be taken back: see
`RunTotals.at_least`.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from moe_megatron.telemetry.values.json_fields import Int64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@dataclass(slots=True, kw_only=True, eq=False)
class RunTotals:
    """Sums over the steps of a run.

    Attributes:
        training: int64 [5]: steps, tokens, skipped steps, steps with a loss and steps with a
            gradient norm that was NaN or infinite.
        routed: int64 [L, E], assignments that reached each expert.
        dropped: int64 [L], assignments that full experts dropped.
    """

    training: Int64Array
    routed: Int64Array
    dropped: Int64Array

    @classmethod
    def empty(cls, num_layers: int, num_experts: int) -> Self:
        """Nothing done yet."""
        return cls(
            training=np.zeros(5, dtype=np.int64),
            routed=np.zeros((num_layers, num_experts), dtype=np.int64),
            dropped=np.zeros(num_layers, dtype=np.int64),
        )

    def add_step(self, record: StepRecord) -> None:
        """Count the training facts of one step."""
        self.training += (
            1,
            record.tokens,
            record.skipped,
            _is_bad(record.loss),
            _is_bad(record.grad_norm),
        )

    def add_routing(self, routing: RoutingSnapshot | RoutingProfile) -> None:
        """Count the routing of one step, or of many."""
        self.routed += routing.tokens_per_expert
        self.dropped += routing.dropped

    def copy(self) -> Self:
        """The sums as they are now."""
        return type(self)(
            training=self.training.copy(), routed=self.routed.copy(), dropped=self.dropped.copy()
        )

    def at_least(self, published: Self) -> Self:
        """The sums, each raised to what was published before where it is less.

        A run that is killed resumes at its last checkpoint and takes steps again that were counted
        already. Prometheus would take a smaller value for a counter that started at zero again and
        add all of it to the increase. So a counter waits until the run has caught up.
        """
        return type(self)(
            training=np.maximum(self.training, published.training),
            routed=np.maximum(self.routed, published.routed),
            dropped=np.maximum(self.dropped, published.dropped),
        )

    @property
    def steps(self) -> int:
        """Steps finished."""
        return int(self.training[0])

    @property
    def tokens(self) -> int:
        """Tokens of their batches."""
        return int(self.training[1])

    @property
    def skipped(self) -> int:
        """Steps without an update."""
        return int(self.training[2])

    @property
    def nonfinite(self) -> dict[str, int]:
        """Steps with a value that was NaN or infinite, by what it was."""
        return {"loss": int(self.training[3]), "gradient": int(self.training[4])}


def _is_bad(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)

"""Exact totals of what a run has done so far, which a resumed run continues.

They agree exactly with metrics.jsonl and with the routing profile. They do not know how they are
published, only that a published total must never decrease: see `RunTotals.at_least`.
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
        routed: int64 [L, E], assignments to each expert, without dropped ones.
        dropped: int64 [L], assignments dropped because the expert was full.
    """

    training: Int64Array
    routed: Int64Array
    dropped: Int64Array

    @classmethod
    def empty(cls, num_layers: int, num_experts: int) -> Self:
        """Totals of no steps."""
        return cls(
            training=np.zeros(5, dtype=np.int64),
            routed=np.zeros((num_layers, num_experts), dtype=np.int64),
            dropped=np.zeros(num_layers, dtype=np.int64),
        )

    def add_step(self, record: StepRecord) -> None:
        """Add the training numbers of one step."""
        self.training += (
            1,
            record.tokens,
            record.skipped,
            _is_bad(record.loss),
            _is_bad(record.grad_norm),
        )

    def add_routing(self, routing: RoutingSnapshot | RoutingProfile) -> None:
        """Add the routing of one step or of many."""
        self.routed += routing.tokens_per_expert
        self.dropped += routing.dropped

    def copy(self) -> Self:
        """A copy that later steps do not change."""
        return type(self)(
            training=self.training.copy(), routed=self.routed.copy(), dropped=self.dropped.copy()
        )

    def at_least(self, published: Self) -> Self:
        """max(self, published), for each total.

        A killed run resumes at its last checkpoint and repeats steps that were already counted.
        Prometheus takes a decreasing counter for one that restarted at zero, and would add its
        whole value to the increase. So a counter stands still until the run has caught up.
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
        """Tokens of the batches of these steps."""
        return int(self.training[1])

    @property
    def skipped(self) -> int:
        """Steps without an update."""
        return int(self.training[2])

    @property
    def nonfinite(self) -> dict[str, int]:
        """Steps with a NaN or infinite "loss" or "gradient"."""
        return {"loss": int(self.training[3]), "gradient": int(self.training[4])}


def _is_bad(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)

"""What an exported metric is: a name, a type, and over which labels it spreads.

The labels say how many series a metric costs in a run of some shape. Identity (job, cluster, run)
is not among them: Prometheus adds it to every series of the target. `catalog` has the list.
"""

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Literal

MetricType = Literal["gauge", "counter", "histogram"]

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint", "telemetry", "other")
"""Where the wall time of the first process goes. They do not overlap."""

LOAD_BUCKETS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Upper bounds, in fair shares. Up to 0.01 an expert counts as dead (`expert_load`)."""

STEP_SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

EXTREMES = 3
"""Most and least loaded experts of a layer that `ExpertDetail.TOPK` names."""

MAX_RANKS = 256
"""With more processes than this, none is named and only the extremes are exported."""


class ExpertDetail(IntEnum):
    """How much is exported of single experts; each level includes those below it."""

    NONE = 0
    HISTOGRAM = 1
    TOPK = 2
    FULL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What decides how many series a run exports."""

    layers: int
    """MoE layers; 0 for a dense model."""
    experts: int
    """Experts in a layer."""
    ranks: int = 1
    """Processes."""
    expert_ranks: int = 1
    """Processes that the experts of a layer are dealt out to."""
    detail: ExpertDetail = ExpertDetail.HISTOGRAM

    def label_values(self, label: str) -> int:
        """Values that a label takes."""
        return {
            "layer": self.layers,
            "expert": self.experts,
            "position": min(EXTREMES, self.experts),
            "rank": self.ranks if self.ranks <= MAX_RANKS else 0,
            "ep_rank": self.expert_ranks if self.layers and self.expert_ranks <= MAX_RANKS else 0,
            "phase": len(PHASES),
            "kind": 2,
            "split": 2,
        }[label]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as exported; a histogram adds `_bucket`, `_sum` and `_count`.
        type: as Prometheus knows it.
        unit: of the values; "" for a plain number.
        help: one sentence.
        labels: of its own; those of `moe_run_info` describe and do not spread.
        detail: the lowest detail that exports it.
        buckets: upper bounds of a histogram, +Inf left out.
        optional: some runs do not export it; the help says when.
    """

    name: str
    type: MetricType
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    detail: ExpertDetail = ExpertDetail.NONE
    buckets: tuple[float, ...] = ()
    optional: bool = False

    @property
    def formula(self) -> str:
        """Number of series, as people write it: "layer x 16"."""
        factors = [] if self.name == "moe_run_info" else list(self.labels)
        if self.buckets:
            factors.append(str(self._samples))
        return " x ".join(factors) or "1"

    @property
    def _samples(self) -> int:
        return len(self.buckets) + 3 if self.buckets else 1  # +Inf, _sum and _count

    def series(self, shape: Shape) -> int:
        """Series this metric costs at most in a run of this shape."""
        if shape.detail < self.detail:
            return 0
        if self.name == "moe_run_info":
            return 1
        return prod(shape.label_values(label) for label in self.labels) * self._samples

"""The definition of an exported metric: its name, its type and its labels.

The labels determine how many series a metric has in a run of a given shape. Labels that identify
the run (job, cluster, run) are not among them: Prometheus adds those to every series of the target.
`catalog` lists the metrics.
"""

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Literal

MetricType = Literal["gauge", "counter", "histogram"]

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint", "telemetry", "other")
"""The parts that the wall time of the first process is divided into; they do not overlap."""

LOST_TIME = (
    "startup", "load", "warmup", "save", "recomputed", "skipped", "hang", "waiting",
)  # fmt: skip
"""The kinds of lost time of a run; `uptime.account` says what each is."""

LOAD_BUCKETS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Upper bounds, in fair shares; 0 counts experts without a token."""

STEP_SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

SINKS = (
    "metrics.jsonl", "routing.jsonl", "history", "console", "exporter", "discovery", "json_log",
    "megatron_log", "tensorboard", "wandb", "other",
)  # fmt: skip
"""Names of sinks and logs; "other" stands for all sinks that were attached from outside."""

EXTREMES = 3
"""How many of the most and least loaded experts of a layer `ExpertDetail.TOPK` exports."""

LAYER_QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "max": 1.0}
"""Where the distribution of a value across the layers is shown: a mean hides one bad layer."""

MAX_RANKS = 256
"""With more processes than this, only extremes are exported and no series per process."""


MAX_TASKS = 32
"""With more tasks than this, nothing is exported of single ones."""


class ExpertDetail(IntEnum):
    """How much is exported about single experts; each level includes those below it."""

    NONE = 0
    HISTOGRAM = 1
    TOPK = 2
    FULL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes that determine how many series a run exports."""

    layers: int
    """MoE layers; 0 for a dense model."""
    experts: int
    """Experts in a layer."""
    ranks: int = 1
    """Processes."""
    expert_ranks: int = 1
    """Processes that the experts of a layer are distributed over."""
    tasks: int = 0
    """Tasks that are told apart."""
    detail: ExpertDetail = ExpertDetail.HISTOGRAM

    def label_values(self, label: str) -> int:
        """Number of values that a label takes."""
        return {
            "layer": self.layers,
            "expert": self.experts,
            "position": min(EXTREMES, self.experts),
            "rank": self.ranks if self.ranks <= MAX_RANKS else 0,
            "ep_rank": self.expert_ranks if self.layers and self.expert_ranks <= MAX_RANKS else 0,
            "stat": len(LAYER_QUANTILES) if self.layers else 0,
            "phase": len(PHASES),
            "sink": len(SINKS),
            "kind": 2,
            "reason": len(LOST_TIME),
            "host": 1,  # of a rank
            "split": 2,
            "task": self.tasks if self.tasks <= MAX_TASKS else 0,
        }[label]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as exported; a histogram adds `_bucket`, `_sum` and `_count`.
        type: its Prometheus type.
        unit: of the values; "" for a plain number.
        help: one sentence.
        labels: its own labels; those of `moe_run_info` only describe and add no series.
        detail: the lowest detail that exports it.
        buckets: upper bounds of a histogram, without +Inf.
        optional: whether some runs do not export it; the help says when.
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
        """Number of series as a product for people to read: "layer x 16"."""
        factors = [] if self.name == "moe_run_info" else list(self.labels)
        if self.buckets:
            factors.append(str(self._samples))
        return " x ".join(factors) or "1"

    @property
    def _samples(self) -> int:
        return len(self.buckets) + 3 if self.buckets else 1  # +Inf, _sum and _count

    def series(self, shape: Shape) -> int:
        """The largest number of series that this metric has in a run of this shape."""
        if shape.detail < self.detail:
            return 0
        if self.name == "moe_run_info":
            return 1
        if self.name == "moe_rank_info" and shape.ranks > MAX_RANKS:
            return 1  # the slowest
        return prod(shape.label_values(label) for label in self.labels) * self._samples

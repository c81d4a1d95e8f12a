"""The one list of metrics that a run exports. Exporter, dashboards, rules and docs come from it.

A metric says what it is and over which labels it spreads, and so how many series it costs. Identity
(job, cluster, run) is not in the labels: Prometheus adds it to every series of the target. Values
are base units; a load ratio of 1.0 is the fair share of an expert. This module computes nothing
and knows no library: `prometheus_series` and `layer_values` fill the metrics in.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
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


def _metric(
    kind: MetricType,
    name: str,
    unit: str,
    help_text: str,
    *labels: str,
    detail: ExpertDetail = ExpertDetail.NONE,
    optional: bool = False,
) -> Metric:
    return Metric(
        name=name, type=kind, unit=unit, help=help_text, labels=labels, detail=detail,
        optional=optional,
    )  # fmt: skip


_gauge = partial(_metric, "gauge")
_counter = partial(_metric, "counter")

RUN_INFO_LABELS = (
    "run_id", "preset", "version", "device", "world_size", "tp", "pp", "ep", "cp", "dp",
    "num_layers", "moe_layers", "num_experts", "top_k",
)  # fmt: skip

TRAINING = (
    _gauge("moe_run_info", "", "Always 1; the labels describe the run.", *RUN_INFO_LABELS),
    _gauge("moe_run_start_timestamp_seconds", "seconds", "When this process started to train."),
    _gauge("moe_train_devices", "devices", "Processes that train, one for each device."),
    _gauge("moe_train_step", "steps", "Global step last finished; a resumed run goes on from it."),
    _gauge("moe_train_planned_steps", "steps", "Global step at which the run will end."),
    _counter("moe_train_steps_total", "steps", "Steps finished."),
    _counter("moe_train_tokens_total", "tokens", "Tokens of the batches of all steps."),
    _gauge("moe_train_tokens_per_step", "tokens", "Tokens of the last global batch."),
    _gauge("moe_train_lm_loss", "nats", "Language model loss of the last step, nats per token."),
    _gauge("moe_train_grad_norm", "", "Global gradient norm before clipping.", optional=True),
    _gauge("moe_train_learning_rate", "", "Learning rate of the last step.", optional=True),
    _gauge("moe_eval_loss", "nats", "Loss of the newest evaluation.", "split", optional=True),
    Metric(
        name="moe_train_step_duration_seconds",
        type="histogram",
        unit="seconds",
        help="Wall time of a step on the first process, logging excluded.",
        buckets=STEP_SECONDS_BUCKETS,
    ),
    _counter(
        "moe_train_phase_seconds_total", "seconds",
        "Wall time of the first process by what it did, by the clock of the host.", "phase",
    ),
    _gauge("moe_train_last_step_timestamp_seconds", "seconds",
           "When the last step ended; before the first, when training started."),
    _counter("moe_train_skipped_steps_total", "steps",
             "Steps without an update because a gradient was not finite."),
    _counter("moe_train_nonfinite_total", "steps",
             "Steps whose loss or gradient norm was NaN or infinite.", "kind"),
    _counter("moe_train_model_flops_total", "operations",
             "Floating-point operations of the model, by Megatron's formula; recomputation is "
             "not in it."),
    _gauge("moe_train_mfu_ratio", "ratio",
           "Operations of the last step over what all devices could do in its time; only where "
           "the peak of the device is known or telemetry.peak_tflops gives it.", optional=True),
    _gauge("moe_checkpoint_last_success_timestamp_seconds", "seconds",
           "When this process last wrote a checkpoint or handed it to the asynchronous writer; "
           "before the first, when training started. Absent when the run saves none.",
           optional=True),
    _gauge("moe_checkpoint_last_step", "steps",
           "Step of the newest checkpoint. Absent when the run saves none.", optional=True),
)  # fmt: skip
"""Exported by every run, with experts or without."""

RANKS = (
    _gauge("moe_rank_compute_seconds", "seconds",
           "Forward time of a process in attention and experts in the last step, without "
           f"communication; absent with more than {MAX_RANKS} processes.", "rank", optional=True),
    _gauge("moe_rank_compute_max_ratio", "ratio", "The largest moe_rank_compute_seconds over the "
           "median of all processes: 1.0 is no straggler.", optional=True),
    _gauge("moe_rank_compute_slowest_rank", "", "The process that is slowest.", optional=True),
    _gauge("moe_rank_memory_bytes", "bytes",
           "Memory of a process: allocated on its GPU, or resident on a CPU; absent with more than "
           f"{MAX_RANKS} processes.", "rank", optional=True),
    _gauge("moe_rank_memory_max_bytes", "bytes", "The largest memory of all processes."),
)  # fmt: skip
"""Of each process, gathered with the reduction that the routing counters need anyway."""

ROUTING = (
    _gauge("moe_experts", "experts", "Experts of the layer.", "layer"),
    _gauge("moe_router_entropy_ratio", "ratio",
           "Mean entropy of the router's distribution over its maximum ln E; 1.0 is undecided.",
           "layer"),
    _gauge("moe_load_entropy_ratio", "ratio",
           "Entropy of the experts' load over its maximum ln E; 1.0 is even.", "layer"),
    _gauge("moe_expert_load_max_ratio", "ratio",
           "Load of the busiest expert of the layer, in fair shares.", "layer"),
    _gauge("moe_expert_load_min_ratio", "ratio",
           "Load of the idlest expert of the layer, in fair shares.", "layer"),
    _gauge("moe_expert_load_stddev_ratio", "ratio",
           "Standard deviation of the load of the layer's experts, in fair shares.", "layer"),
    _gauge("moe_experts_dead", "experts",
           "Experts that got less than 1 % of a fair share in the last step.", "layer"),
    _counter("moe_tokens_routed_total", "assignments",
             "Assignments of a token to an expert that reached it.", "layer"),
    _counter("moe_tokens_dropped_total", "assignments",
             "Assignments that a full expert dropped.", "layer"),
    _gauge("moe_tokens_dropped_ratio", "ratio",
           "Part of the assignments of the last step that full experts dropped.", "layer"),
    _gauge("moe_router_aux_loss", "",
           "Switch load balancing loss of the last step, unscaled; 1.0 is even.", "layer"),
    _gauge("moe_router_z_loss", "", "Router z-loss of the last step, unscaled.", "layer"),
    _gauge("moe_ep_rank_load_ratio", "ratio",
           "Load of an expert parallel rank over its fair share, in the layer where that is "
           f"largest; absent with more than {MAX_RANKS} of them.", "ep_rank", optional=True),
    Metric(
        name="moe_expert_load_ratio",
        type="histogram",
        unit="ratio",
        help="Load of every expert in every step, in fair shares.",
        labels=("layer",),
        detail=ExpertDetail.HISTOGRAM,
        buckets=LOAD_BUCKETS,
    ),
    _gauge("moe_expert_load_top_ratio", "ratio",
           "Load of the busiest experts; position 1 is the busiest.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _gauge("moe_expert_load_top_expert", "", "Which experts moe_expert_load_top_ratio is of.",
           "layer", "position", detail=ExpertDetail.TOPK),
    _gauge("moe_expert_load_bottom_ratio", "ratio",
           "Load of the idlest experts; position 1 is the idlest.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _gauge("moe_expert_load_bottom_expert", "",
           "Which experts moe_expert_load_bottom_ratio is of.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _counter("moe_expert_tokens_total", "assignments",
             "Assignments that reached the expert.", "layer", "expert", detail=ExpertDetail.FULL),
)  # fmt: skip
"""Exported by runs with experts while telemetry.enabled is true. `layer` counts from 1, `expert`
from 0, as Megatron does."""

EXPORTER = (
    _gauge("moe_exporter_series", "series", "Series of the last scrape."),
    _gauge("moe_exporter_collect_seconds", "seconds", "Time the last scrape took to collect."),
    _counter("moe_exporter_missed_steps_total", "steps",
             "Steps of this process whose record never reached the exporter, because sinks were "
             "slower than training; the other counters lack them."),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*TRAINING, *RANKS, *ROUTING, *EXPORTER)

BY_NAME = {metric.name: metric for metric in METRICS}


def num_series(shape: Shape) -> int:
    """Series a run of this shape exports at most."""
    return sum(metric.series(shape) for metric in METRICS)


def fitting_detail(shape: Shape, max_series: int) -> ExpertDetail | None:
    """The highest detail up to that of `shape` that stays within a number of series, or None."""
    for detail in reversed(ExpertDetail):
        if detail <= shape.detail and num_series(replace(shape, detail=detail)) <= max_series:
            return detail
    return None

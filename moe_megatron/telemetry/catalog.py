"""The two lists behind everything that a run shows: quantities of a layer, and exported metrics.

A quantity (`quantity`) is one number for each MoE layer and step. It is measured, kept in every
file, drawn in the report and, if it has a gauge, exported. `register` adds one, from any file,
before a run starts; code that counts, keeps or shows quantities iterates over `quantities`.

A metric (`metric`) is exported to Prometheus, which gets few series while files keep everything.
Values are in base units; a load ratio of 1.0 is an expert's fair share. `exporter.series` and
`values.layer_values` compute the values of metrics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.metric import (
    LOAD_BUCKETS,
    MAX_RANKS,
    MAX_TASKS,
    STEP_SECONDS_BUCKETS,
    ExpertDetail,
    Metric,
    MetricType,
    Shape,
)
from moe_megatron.telemetry.quantity import Quantity, StepSums
from moe_megatron.telemetry.values.json_fields import Float64Array


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
    _gauge("moe_run_age_seconds", "seconds", "Time since moe_run_start_timestamp_seconds, by the "
           "clock of the first process."),
    _gauge("moe_attempt", "", "How often the processes of the run have been started.",
           optional=True),
    _gauge("moe_goodput_ratio", "ratio", "Time of the steps that were kept over the time since the "
           "run was first launched.", optional=True),
    _counter("moe_lost_seconds_total", "seconds", "Time since the run was first launched that was "
             "lost, by `moe-megatron uptime`; continues in a resumed run.", "reason",
             optional=True),
    _gauge("moe_train_devices", "devices", "Processes that train, one for each device."),
    _gauge("moe_train_step", "steps", "Last finished global step; continues in a resumed run."),
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
        help="Wall time of a step on the first process, without logging.",
        buckets=STEP_SECONDS_BUCKETS,
    ),
    _counter(
        "moe_train_phase_seconds_total", "seconds",
        "Wall time of the first process in each phase, by the clock of the host.", "phase",
    ),
    _gauge("moe_train_last_step_age_seconds", "seconds",
           "Time since the last step ended, by the clock of the first process; before the first "
           "step, moe_run_age_seconds."),
    _counter("moe_train_skipped_steps_total", "steps",
             "Steps without an update because a gradient was not finite."),
    _counter("moe_train_nonfinite_total", "steps",
             "Steps whose loss or gradient norm was NaN or infinite.", "kind"),
    _counter("moe_train_model_flops_total", "operations",
             "Floating-point operations of the model, by Megatron's formula, without "
             "recomputation."),
    _gauge("moe_train_mfu_ratio", "ratio",
           "Model FLOPs utilization: operations per second of the last step over the peak of all "
           "devices. Absent unless the peak is known or given by telemetry.peak_tflops.",
           optional=True),
    _gauge("moe_checkpoint_last_success_timestamp_seconds", "seconds",
           "When this process took the state of the newest complete checkpoint; before the first, "
           "when training started. Absent when the run saves none.",
           optional=True),
    _gauge("moe_checkpoint_age_seconds", "seconds",
           "Time since moe_checkpoint_last_success_timestamp_seconds, by the clock of the first "
           "process. Absent when the run saves none.",
           optional=True),
    _gauge("moe_checkpoint_last_step", "steps",
           "Step of the newest checkpoint. Absent when the run saves none.", optional=True),
    _gauge("moe_checkpoint_failed", "", "1 while the last save could not be written, often for "
           "want of room; else 0. Absent when the run saves none.", optional=True),
    _counter("moe_checkpoint_failures_total", "", "Saves of this process that could not be "
             "written. Absent when the run saves none.", optional=True),
)  # fmt: skip
"""Exported by every run, with experts or without."""

RANKS = (
    _gauge("moe_rank_info", "", "Always 1; the labels name the machine of a process. With more "
           f"than {MAX_RANKS} processes, only that of the slowest one.", "rank", "host",
           optional=True),
    _gauge("moe_rank_compute_seconds", "seconds",
           "Forward time of a process in attention and experts in the last step, without "
           f"communication; absent with more than {MAX_RANKS} processes.", "rank", optional=True),
    _gauge("moe_rank_compute_max_ratio", "ratio", "The largest moe_rank_compute_seconds over the "
           "median of all processes; 1.0 means no straggler.", optional=True),
    _gauge("moe_rank_compute_slowest_rank", "", "Rank of the slowest process.", optional=True),
    _gauge("moe_rank_memory_bytes", "bytes",
           "Memory of a process: allocated on its GPU, or resident on a CPU; absent with more than "
           f"{MAX_RANKS} processes.", "rank", optional=True),
    _gauge("moe_rank_memory_max_bytes", "bytes", "The largest memory of all processes."),
)  # fmt: skip
"""Metrics of the processes, gathered in the same reduction as the routing counters."""

ROUTING = (
    _gauge("moe_experts", "experts", "Experts of the layer.", "layer"),
    _gauge("moe_load_entropy_ratio", "ratio",
           "Entropy of the experts' load over its maximum ln E; 1.0 is even.", "layer"),
    _gauge("moe_expert_load_max_ratio", "ratio",
           "Load of the busiest expert of the layer, in fair shares.", "layer"),
    _gauge("moe_layer_imbalance_ratio", "ratio",
           "Distribution of moe_expert_load_max_ratio across the layers: min is the best "
           "balanced layer, max the worst.", "stat"),
    _gauge("moe_expert_load_min_ratio", "ratio",
           "Load of the least busy expert of the layer, in fair shares.", "layer"),
    _gauge("moe_expert_load_stddev_ratio", "ratio",
           "Standard deviation of the load of the layer's experts, in fair shares.", "layer"),
    _gauge("moe_experts_dead", "experts",
           "Experts that no token has reached in the last 100 steps, or since this process "
           "started.", "layer"),
    _gauge("moe_experts_masked", "experts",
           "Experts taken out of routing because they failed.", "layer"),
    _counter("moe_tokens_routed_total", "assignments",
             "Assignments of a token to an expert, not counting dropped ones.", "layer"),
    _counter("moe_tokens_dropped_total", "assignments",
             "Assignments dropped because the expert was full.", "layer"),
    _gauge("moe_tokens_dropped_ratio", "ratio",
           "Share of the assignments of the last step that were dropped because the expert was "
           "full.", "layer"),
    _gauge("moe_experts_per_token", "experts",
           "Mean number of experts that the router selected per token in the last step, including "
           "dropped assignments.", "layer"),
    _gauge("moe_ep_rank_load_ratio", "ratio",
           "Load of an expert parallel rank over its fair share, in the layer where that is "
           f"largest; absent with more than {MAX_RANKS} ranks.", "ep_rank", optional=True),
    _gauge("moe_task_load_max_ratio", "ratio",
           "Load of the busiest expert of the layer by the tokens of a task in the last step, in "
           f"fair shares; absent without tasks, or with more than {MAX_TASKS}.", "layer", "task",
           optional=True),
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
    _gauge("moe_expert_load_top_expert", "",
           "Number of the expert whose load is moe_expert_load_top_ratio.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _gauge("moe_expert_load_bottom_ratio", "ratio",
           "Load of the least busy experts; position 1 is the least busy.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _gauge("moe_expert_load_bottom_expert", "",
           "Number of the expert whose load is moe_expert_load_bottom_ratio.", "layer", "position",
           detail=ExpertDetail.TOPK),
    _counter("moe_expert_tokens_total", "assignments",
             "Assignments to the expert, not counting dropped ones.", "layer", "expert",
             detail=ExpertDetail.FULL),
)  # fmt: skip
"""Exported by runs with experts while telemetry.enabled is true. `layer` counts from 1, `expert`
from 0, as Megatron does."""

EXPORTER = (
    _gauge("moe_exporter_series", "series", "Series in this scrape."),
    _gauge("moe_exporter_collect_seconds", "seconds", "Time to collect the series of this scrape."),
    _gauge("moe_sink_failed", "",
           "1 while a sink or log of any process cannot be written, else 0.", "sink"),
    _counter("moe_sink_outages_total", "outages", "How often it could not be written.", "sink"),
    _counter("moe_sink_dropped_records_total", "records",
             "Records or lines that it has lost; up to a bound they wait for its return.", "sink"),
    _counter("moe_exporter_missed_steps_total", "steps",
             "Steps of this process that never reached the exporter because sinks were slower "
             "than training; the other counters do not include them."),
)  # fmt: skip


def _switch_loss(sums: StepSums) -> Float64Array:
    """L = E * sum_e f_e * P_e, float64 [L] (Switch Transformers, arXiv:2101.03961, equation 4).

    f_e is expert e's share of the assignments that were not dropped, P_e its mean probability.
    """
    counts, num_experts = sums.tokens_per_expert, sums.tokens_per_expert.shape[1]
    fractions = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    per_token = 1.0 / max(sums.tokens, 1)
    loss: Float64Array = num_experts * (fractions * sums.prob_sums * per_token).sum(axis=1)
    return loss


_BUILT_IN = (
    Quantity(
        name="entropy",
        unit="nats",
        help="Mean entropy of the router's distribution.",
        title="Router entropy",
        note="1 means undecided between all experts, 0 certain of one. It falls slowly as experts "
        "specialise; a sudden fall precedes a collapse.",
        measure=lambda routed: routed.entropy_T,
        gauge="moe_router_entropy_ratio",
        part_of_maximum=True,
        column="entropy",
    ),
    Quantity(
        name="aux_loss",
        help="Switch load balancing loss of the global batch, unscaled.",
        title="Load balancing loss (unscaled)",
        note="1 is perfect balance, E / top_k a collapse onto the same top_k experts.",
        derive=_switch_loss,
        gauge="moe_router_aux_loss",
        ideal=1.0,
    ),
    Quantity(
        name="z_loss",
        help="Router z-loss, the mean of logsumexp(logits)^2, unscaled.",
        title="Router z-loss (unscaled)",
        note="It grows with the magnitude of the logits; large logits make a router unstable in "
        "low precision.",
        measure=lambda routed: routed.logsumexp_T.square(),
        gauge="moe_router_z_loss",
    ),
)

_FIXED = {metric.name: metric for metric in (*TRAINING, *RANKS, *ROUTING, *EXPORTER)}
_registered = {quantity.name: quantity for quantity in _BUILT_IN}


def quantities() -> tuple[Quantity, ...]:
    """All registered quantities, built-in ones first; a run uses those registered at its start."""
    return tuple(_registered.values())


def quantity_names() -> tuple[str, ...]:
    """Names of all registered quantities, built-in ones first."""
    return tuple(_registered)


def register(quantity: Quantity) -> Quantity:
    """Adds a quantity to every run that starts later.

    All processes of a run must register the same quantities in the same order.

    Raises:
        ConfigError: its name or the name of its gauge is taken.
    """
    if quantity.name in _registered:
        raise ConfigError(
            f"there is already a quantity '{quantity.name}'; choose another name for the new one."
        )
    if quantity.gauge is not None and find_metric(quantity.gauge) is not None:
        raise ConfigError(
            f"the gauge '{quantity.gauge}' of the quantity '{quantity.name}' has the name of "
            "another metric; choose another name, or None to export no gauge."
        )
    _registered[quantity.name] = quantity
    return quantity


def unregister(name: str) -> None:
    """Removes a registered quantity.

    Raises:
        ConfigError: it is built in, or not registered.
    """
    if name in {quantity.name for quantity in _BUILT_IN}:
        raise ConfigError(f"the quantity '{name}' is built in and cannot be unregistered.")
    if name not in _registered:
        known = ", ".join(quantity_names())
        raise ConfigError(f"no quantity '{name}' is registered; registered are {known}.")
    del _registered[name]


@contextmanager
def registered(*added: Quantity) -> Iterator[None]:
    """Registers quantities only within the `with` block, for tests.

    Raises:
        ConfigError: as `register`; then none of them is registered.
    """
    names: list[str] = []
    try:
        for quantity in added:
            names.append(register(quantity).name)
        yield
    finally:
        for name in names:
            unregister(name)


def metrics() -> tuple[Metric, ...]:
    """Every metric that a run may export; the gauges of quantities follow those of routing."""
    gauges = (_gauge_of(quantity) for quantity in quantities() if quantity.gauge is not None)
    return (*TRAINING, *RANKS, *ROUTING, *gauges, *EXPORTER)


def find_metric(name: str) -> Metric | None:
    """The metric with this name, or None; the `_bucket` etc. of a histogram are not metrics."""
    if name in _FIXED:
        return _FIXED[name]
    return next((_gauge_of(found) for found in quantities() if found.gauge == name), None)


def _gauge_of(quantity: Quantity) -> Metric:
    assert quantity.gauge is not None
    return _gauge(quantity.gauge, quantity.shown_unit, quantity.shown_help, "layer")


def num_series(shape: Shape) -> int:
    """The largest number of series that a run of this shape exports."""
    return sum(metric.series(shape) for metric in metrics())


def fitting_detail(shape: Shape, max_series: int) -> ExpertDetail | None:
    """The highest detail, up to `shape.detail`, with at most `max_series` series; None if none."""
    for detail in reversed(ExpertDetail):
        if detail <= shape.detail and num_series(replace(shape, detail=detail)) <= max_series:
            return detail
    return None

"""A run as Prometheus series: computes the metrics of the catalog, and only those.

It is a custom collector for `prometheus_client`: recording a step does no work for Prometheus, and
a scrape turns plain arrays into samples. Label sets are built once. It does not know who requests
the series or how they are sent.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from moe_megatron.telemetry.catalog import RUN_INFO_LABELS, find_metric
from moe_megatron.telemetry.exporter.run_state import Histograms, RunState, RunView
from moe_megatron.telemetry.metric import (
    EXTREMES,
    LAYER_QUANTILES,
    MAX_RANKS,
    MAX_TASKS,
    SINKS,
    ExpertDetail,
)
from moe_megatron.telemetry.sinks.health import SinkHealth, SinkState
from moe_megatron.telemetry.values.expert_load import imbalance
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.layer_values import across_layers, layer_values
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Labels = dict[str, str]
Values = Iterable[float] | Float64Array | Int64Array


class RunCollector(Collector):
    """Collects a `RunState`.

    Args:
        state: The run.
        detail: What to export about single experts.
        clock: A monotonic clock in seconds, to time the collection.
        health: The state of all sinks.
    """

    def __init__(
        self,
        state: RunState,
        detail: ExpertDetail,
        clock: Callable[[], float] = time.perf_counter,
        health: SinkHealth | None = None,
    ) -> None:
        self._state = state
        self._health = health or SinkHealth()
        self._clock = clock
        run = state.view().run
        experts, positions = range(run.num_experts), range(1, min(EXTREMES, run.num_experts) + 1)
        self._layers = [{"layer": str(layer)} for layer in run.layers]
        self._positions = [
            {**layer, "position": str(p)} for layer in self._layers for p in positions
        ]
        self._detail = detail if run.layers else ExpertDetail.NONE
        full = detail == ExpertDetail.FULL
        labels = self._layers if full else []
        self._experts = [{**layer, "expert": str(e)} for layer in labels for e in experts]

    def describe(self) -> Iterable[Family]:
        """Returns no names; without this method a registry may collect to learn them."""
        return []

    def collect(self) -> Iterator[Family]:
        """The series of one scrape."""
        started = self._clock()
        view, number = self._state.view(), 0
        for family in self._families(view):
            number += len(family.samples)
            yield family
        yield _single("moe_exporter_series", number + 3)
        yield _single("moe_exporter_missed_steps_total", view.missed_steps)
        yield _single("moe_exporter_collect_seconds", self._clock() - started)

    def _families(self, view: RunView) -> Iterator[Family]:
        yield from _about_run(view)
        yield from _sums(view)
        yield from _last_step(view)
        yield from _ranks(view)
        if self._layers:
            yield from self._routing(view)
        others = view.runtime.other_sinks if view.runtime is not None else {}
        yield from _sinks([*self._health.states().items(), *others.items()])

    def _routing(self, view: RunView) -> Iterator[Family]:
        layers, totals = self._layers, view.totals
        routed = totals.routed.sum(axis=1)
        experts = np.full(len(layers), view.run.num_experts)
        yield _family("moe_experts", layers, experts)
        yield _family("moe_tokens_routed_total", layers, routed)
        yield _family("moe_tokens_dropped_total", layers, totals.dropped)
        if self._detail >= ExpertDetail.HISTOGRAM:
            yield _histogram("moe_expert_load_ratio", layers, view.loads)
        if self._detail >= ExpertDetail.FULL:
            yield _family("moe_expert_tokens_total", self._experts, totals.routed.ravel())
        masked = view.runtime.masked_experts if view.runtime is not None else ()
        yield _family("moe_experts_masked", layers, masked or [0] * len(layers))
        if view.routing is not None:
            dead = None if view.runtime is None else view.runtime.dead_experts
            for name, values in layer_values(view.routing, dead).items():
                yield _family(name, layers, values)
            yield _layer_quantiles("moe_layer_imbalance_ratio", view.routing.imbalance)
            yield from _expert_ranks(view.routing, view.run.expert_ranks)
            yield from _tasks(view.routing)
            if self._detail >= ExpertDetail.TOPK:
                yield from self._extremes(view.routing.relative_load)

    def _extremes(self, load: Float64Array) -> Iterator[Family]:
        # The position is a label and the expert a value: with the expert as a label, every expert
        # that was ever at the top would leave a series behind.
        order = np.argsort(load, axis=1, kind="stable")
        number = len(self._positions) // len(self._layers)
        for name, chosen in (("bottom", order), ("top", order[:, ::-1])):
            experts = chosen[:, :number]
            ratios = np.take_along_axis(load, experts, axis=1)
            yield _family(f"moe_expert_load_{name}_ratio", self._positions, ratios.ravel())
            yield _family(f"moe_expert_load_{name}_expert", self._positions, experts.ravel())


def _about_run(view: RunView) -> Iterator[Family]:
    run = view.run
    info = {name: run.labels.get(name, "") for name in RUN_INFO_LABELS}
    yield _family("moe_run_info", [info], [1.0])
    yield _single("moe_run_start_timestamp_seconds", view.epoch + view.started_at)
    yield _single("moe_run_age_seconds", view.now - view.started_at)
    if view.account is not None:
        yield _single("moe_attempt", view.account.attempts)
        yield _single("moe_goodput_ratio", view.account.goodput)
        reasons = [{"reason": reason} for reason in view.lost_seconds]
        yield _family("moe_lost_seconds_total", reasons, view.lost_seconds.values())
    yield _single("moe_train_devices", run.world_size)
    yield _single("moe_train_planned_steps", run.total_steps)


def _sums(view: RunView) -> Iterator[Family]:
    totals, run = view.totals, view.run
    yield _single("moe_train_steps_total", totals.steps)
    yield _single("moe_train_tokens_total", totals.tokens)
    yield _single("moe_train_skipped_steps_total", totals.skipped)
    kinds = [{"kind": kind} for kind in totals.nonfinite]
    yield _family("moe_train_nonfinite_total", kinds, totals.nonfinite.values())
    yield _histogram("moe_train_step_duration_seconds", [{}], view.step_seconds)
    phases = [{"phase": phase} for phase in view.phase_seconds]
    yield _family("moe_train_phase_seconds_total", phases, view.phase_seconds.values())
    if run.flops_per_token is not None:
        yield _single("moe_train_model_flops_total", totals.tokens * run.flops_per_token)


def _last_step(view: RunView) -> Iterator[Family]:
    run, record, runtime = view.run, view.record, view.runtime
    yield _single("moe_train_step", run.start_step if record is None else record.step)
    ended_at = view.started_at if runtime is None else runtime.ended_at
    yield _single("moe_train_last_step_age_seconds", view.now - ended_at)
    if run.saves_checkpoints:
        step, at = run.start_step, view.started_at
        if runtime is not None and runtime.checkpoint_step is not None:
            step, at = runtime.checkpoint_step, runtime.checkpoint_at or view.started_at
        yield _single("moe_checkpoint_last_step", step)
        yield _single("moe_checkpoint_last_success_timestamp_seconds", view.epoch + at)
        yield _single("moe_checkpoint_age_seconds", view.now - at)
        yield _single("moe_checkpoint_failed", bool(runtime and runtime.save_failed))
        yield _single("moe_checkpoint_failures_total", runtime.failed_saves if runtime else 0)
    splits = [{"split": split} for split in view.evaluations]
    if splits:
        losses = [evaluation.loss for evaluation in view.evaluations.values()]
        yield _family("moe_eval_loss", splits, losses)
    if record is None:
        return
    yield _single("moe_train_tokens_per_step", record.tokens)
    values = {
        "moe_train_lm_loss": record.loss,
        "moe_train_grad_norm": record.grad_norm,
        "moe_train_learning_rate": record.learning_rate,
    }
    if run.flops_per_token is not None and run.peak_flops and record.step_seconds > 0:
        done = record.tokens * run.flops_per_token / record.step_seconds
        values["moe_train_mfu_ratio"] = done / run.peak_flops
    for name, value in values.items():
        if value is not None:
            yield _single(name, value)


def _ranks(view: RunView) -> Iterator[Family]:
    if view.runtime is None:
        return
    seconds, memory = view.runtime.rank_compute_seconds, view.runtime.rank_memory_bytes
    ranks = [{"rank": str(rank)} for rank in range(len(seconds))]
    if view.run.hosts:
        every = len(ranks) <= MAX_RANKS
        named = range(len(ranks)) if every else [int(seconds.argmax())]
        hosts = [{"rank": str(rank), "host": view.run.hosts[rank]} for rank in named]
        yield _family("moe_rank_info", hosts, [1.0] * len(hosts))
    yield _single("moe_rank_memory_max_bytes", memory.max())
    if len(ranks) <= MAX_RANKS:
        yield _family("moe_rank_memory_bytes", ranks, memory)
    if median := float(np.median(seconds)):
        yield _single("moe_rank_compute_max_ratio", seconds.max() / median)
        yield _single("moe_rank_compute_slowest_rank", float(seconds.argmax()))
        if len(ranks) <= MAX_RANKS:
            yield _family("moe_rank_compute_seconds", ranks, seconds)


def _layer_quantiles(name: str, values: Float64Array) -> Family:
    labels = [{"stat": stat} for stat in LAYER_QUANTILES]
    return _family(name, labels, across_layers(values))


def _sinks(states: Iterable[tuple[str, SinkState]]) -> Iterator[Family]:
    totals = dict.fromkeys(SINKS, SinkState())
    for name, state in states:
        known = name if name in totals else "other"
        totals[known] = totals[known] + state
    labels = [{"sink": name} for name in totals]
    found = totals.values()
    yield _family("moe_sink_failed", labels, [state.broken for state in found])
    yield _family("moe_sink_outages_total", labels, [state.outages for state in found])
    yield _family("moe_sink_dropped_records_total", labels, [state.dropped for state in found])


def _expert_ranks(routing: RoutingSnapshot, number: int) -> Iterator[Family]:
    load = routing.relative_load
    if number > MAX_RANKS or load.shape[1] % number:
        return
    by_rank = load.reshape(len(load), number, -1).mean(axis=2)
    ranks = [{"ep_rank": str(rank)} for rank in range(number)]
    yield _family("moe_ep_rank_load_ratio", ranks, np.fmax.reduce(by_rank, axis=0))


def _tasks(routing: RoutingSnapshot) -> Iterator[Family]:
    if not 0 < len(routing.by_task) <= MAX_TASKS:
        return
    labels: list[Labels] = []
    values: list[float] = []
    for name, counts in routing.by_task.items():
        labels += [{"layer": str(layer), "task": name} for layer in routing.layers]
        values += imbalance(counts).tolist()
    yield _family("moe_task_load_max_ratio", labels, values)


def _single(name: str, value: float) -> Family:
    return _family(name, [{}], [value])


def _family(name: str, labels: Iterable[Labels], values: Values) -> Family:
    family = _empty_family(name)
    numbers = values.tolist() if isinstance(values, np.ndarray) else map(float, values)
    family.samples = [
        Sample(name, label, value) for label, value in zip(labels, numbers, strict=True)
    ]
    return family


def _histogram(name: str, labels: Iterable[Labels], histograms: Histograms) -> Family:
    family = _empty_family(name)
    bounds = [*map(str, histograms.bounds.tolist()), "+Inf"]
    cumulative = histograms.counts.cumsum(axis=1).tolist()
    for label, counts, total in zip(labels, cumulative, histograms.sums.tolist(), strict=True):
        family.samples += [
            Sample(f"{name}_bucket", {**label, "le": bound}, count)
            for bound, count in zip(bounds, counts, strict=True)
        ]
        family.samples += [
            Sample(f"{name}_count", label, counts[-1]),
            Sample(f"{name}_sum", label, total),
        ]
    return family


def _empty_family(name: str) -> Family:
    metric = find_metric(name)
    assert metric is not None, f"{name} is not in telemetry/catalog.py"
    # Families name a counter without the suffix of its samples.
    return Family(metric.name.removesuffix("_total"), metric.help, metric.type)

"""What a scrape holds: every metric of the catalog and no other, with the right values."""

import itertools
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moe_megatron.telemetry.catalog import (
    find_metric,
    metrics,
    num_series,
    quantity_names,
    registered,
)
from moe_megatron.telemetry.exporter.exposition import write_text
from moe_megatron.telemetry.exporter.run_state import RunState
from moe_megatron.telemetry.exporter.series import RunCollector
from moe_megatron.telemetry.metric import ExpertDetail, Shape
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.health import SinkHealth, SinkState
from moe_megatron.telemetry.uptime.account import LOST, Account
from moe_megatron.telemetry.values.layer_values import across_layers, load_entropy_ratio
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord, StepRuntime
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def make_run(shape: Shape, **fields) -> RunInfo:
    values = {
        "run_dir": None,
        "total_steps": 50,
        "start_step": 0,
        "num_layers": shape.layers + 1,
        "num_experts": shape.experts,
        "top_k": 2,
        "world_size": shape.ranks,
        "layers": tuple(range(2, shape.layers + 2)),
        "description": "",
        "labels": {"run_id": 'a "quoted"\nname\\'},
        "expert_ranks": shape.expert_ranks,
        "tasks": tuple(f"task{number}" for number in range(shape.tasks)),
        "flops_per_token": 1e6,
        "peak_flops": 1e9,
        "saves_checkpoints": True,
        "hosts": tuple(f"node{rank // 8}" for rank in range(shape.ranks)),
    }
    return RunInfo(**(values | fields))


def make_snapshot(run: RunInfo, step: int, tokens: int = 64) -> RoutingSnapshot:
    rng = np.random.default_rng(step)
    num_layers, num_experts = len(run.layers), run.num_experts
    counts = rng.multinomial(2 * tokens - 3, np.full(num_experts, 1 / num_experts), size=num_layers)
    return RoutingSnapshot(
        step=step,
        tokens=tokens,
        top_k=2,
        layers=run.layers,
        tokens_per_expert=counts,
        by_task={name: counts // len(run.tasks) for name in run.tasks},
        assigned=np.full(num_layers, 2 * tokens),
        dropped=np.full(num_layers, 3),
        per_layer={name: rng.random(num_layers) for name in quantity_names()},
    )


def make_step(run: RunInfo, step: int, **fields) -> StepRecord:
    runtime = StepRuntime(
        ended_at=1000.0 + step,
        phase_seconds={"data": 0.25, "forward_backward": 1.5},
        rank_compute_seconds=np.linspace(1.0, 2.0, run.world_size),
        rank_memory_bytes=np.arange(run.world_size) * 1e9,
        checkpoint_step=step - 1,
        checkpoint_at=990.0 + step,
    )
    values = {
        "step": step,
        "loss": 2.5,
        "learning_rate": 1e-3,
        "grad_norm": 0.7,
        "step_seconds": 0.5,
        "tokens": 64,
        "total_steps": 50,
        "runtime": runtime,
    }
    return StepRecord(**(values | fields))


def clock(start: float = 900.0, scrape: float = 1150.0) -> Callable[[], float]:
    """A clock that shows the start of the run when it is first read, and later the scrape."""
    readings = itertools.chain([start], itertools.repeat(scrape))
    return lambda: next(readings)


def complete(shape: Shape) -> tuple[CollectorRegistry, list[RoutingSnapshot], RunState]:
    """A registry of a run that has everything the catalog lists."""
    run = make_run(shape)
    account = Account(
        started=800.0, wall=200.0, attempts=2, kept=150.0, kept_steps=3, lost_steps=1,
        evaluation=5.0, lost={kind: float(n) for n, kind in enumerate(LOST)}, other=17.0,
    )  # fmt: skip
    state = RunState(run, account=lambda: account, clock=clock(), wall=lambda: 5000.0)
    registry, snapshots = CollectorRegistry(), []
    for step in (1, 2, 3):
        if run.layers:
            snapshots.append(make_snapshot(run, step))
        state.add_step(make_step(run, step), snapshots[-1] if run.layers else None)
    for split in ("validation", "test"):
        state.add_evaluation(EvalRecord(step=3, split=split, loss=2.25))
    registry.register(RunCollector(state, shape.detail))
    return registry, snapshots, state


def samples(registry: CollectorRegistry) -> dict[tuple, float]:
    """Values by name and labels, through the text and its parser."""
    families = text_string_to_metric_families(write_text(registry).decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


SMALL = Shape(layers=3, experts=8, ranks=4, expert_ranks=2, tasks=2, detail=ExpertDetail.FULL)
SHAPES = [
    SMALL,
    Shape(layers=16, experts=8, ranks=2, expert_ranks=2),
    Shape(layers=32, experts=64, ranks=8, expert_ranks=8, tasks=40, detail=ExpertDetail.TOPK),
    Shape(layers=2, experts=2, ranks=1, detail=ExpertDetail.TOPK),
    Shape(layers=2, experts=4, ranks=300, expert_ranks=2, detail=ExpertDetail.NONE),
    Shape(layers=61, experts=256, ranks=256, expert_ranks=64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.layers}x{s.experts}-{s.detail.name}")
def test_number_of_series_is_that_of_the_formula(shape):
    registry, _, _ = complete(shape)
    found = samples(registry)
    assert len(found) == num_series(shape)
    assert found["moe_exporter_series",] == num_series(shape)
    if shape.detail == ExpertDetail.HISTOGRAM:
        assert len(found) <= 3000


def test_every_metric_of_the_catalog_is_exported_with_its_type_and_help():
    registry, _, _ = complete(SMALL)
    text = write_text(registry).decode()
    for metric in metrics():
        assert f"# TYPE {metric.name} {metric.type}\n" in text
        assert f"# HELP {metric.name} {metric.help}\n" in text
    assert text.count("# TYPE") == len(metrics())


def test_labels_are_those_of_the_catalog():
    registry, _, _ = complete(SMALL)
    for name, *labels in samples(registry):
        stem = name
        for suffix in ("_bucket", "_sum", "_count"):
            stem = stem if find_metric(stem) else stem.removesuffix(suffix)
        metric = find_metric(stem)
        assert metric is not None, name
        assert {label for label, _ in labels} - {"le"} == set(metric.labels), name


def test_values_are_those_of_the_steps():
    registry, snapshots, _ = complete(SMALL)
    found = samples(registry)
    routed = sum(s.tokens_per_expert for s in snapshots)
    last = snapshots[-1]
    for index, layer in enumerate(last.layers):
        at = ("layer", str(layer))
        assert found["moe_tokens_routed_total", at] == routed[index].sum()
        assert found["moe_tokens_dropped_total", at] == 9
        assert found["moe_tokens_dropped_ratio", at] == last.drop_rate[index]
        assert found["moe_expert_load_max_ratio", at] == last.imbalance[index]
        assert found["moe_router_aux_loss", at] == last.per_layer["aux_loss"][index]
        assert found["moe_router_z_loss", at] == last.per_layer["z_loss"][index]
        entropy = last.per_layer["entropy"][index]
        assert found["moe_router_entropy_ratio", at] == entropy / math.log(8)
        assert found["moe_experts_per_token", at] == 2.0
        for expert in range(8):
            key = ("moe_expert_tokens_total", ("expert", str(expert)), at)
            assert found[key] == routed[index, expert]
        order = np.argsort(last.tokens_per_expert[index], kind="stable")
        for position in (1, 2, 3):
            key = (at, ("position", str(position)))
            assert found["moe_expert_load_top_expert", *key] == order[-position]
            assert found["moe_expert_load_bottom_expert", *key] == order[position - 1]
            share = last.relative_load[index, order[-position]]
            assert found["moe_expert_load_top_ratio", *key] == share
    assert found["moe_train_tokens_total",] == 192
    assert found["moe_train_model_flops_total",] == 192e6
    assert found["moe_train_mfu_ratio",] == pytest.approx(64 * 1e6 / 0.5 / 1e9)
    assert found["moe_run_age_seconds",] == 250.0
    assert found["moe_train_last_step_age_seconds",] == 147.0
    assert found["moe_checkpoint_last_step",] == 2
    assert found["moe_checkpoint_age_seconds",] == 157.0
    assert found["moe_run_start_timestamp_seconds",] == 5000.0
    assert found["moe_checkpoint_last_success_timestamp_seconds",] == 5093.0
    assert found["moe_train_phase_seconds_total", ("phase", "data")] == 0.75
    assert found["moe_rank_compute_slowest_rank",] == 3
    assert found["moe_rank_compute_max_ratio",] == pytest.approx(2 / 1.5)
    assert found["moe_eval_loss", ("split", "test")] == 2.25


def test_quantiles_of_imbalance_are_those_of_the_sorted_layers():
    registry, snapshots, _ = complete(replace(SMALL, layers=11))
    found = samples(registry)
    counts = snapshots[-1].tokens_per_expert
    ordered = sorted(max(row) * 8 / sum(row) for row in counts.tolist())
    for stat, place in (("min", 0), ("p50", 5), ("p90", 9), ("max", 10)):
        value = found["moe_layer_imbalance_ratio", ("stat", stat)]
        assert value == pytest.approx(ordered[place])


def test_layers_without_tokens_are_not_in_the_quantiles():
    nan = math.nan
    assert across_layers(np.array([nan, 1.5, 2.5])).tolist() == pytest.approx([1.5, 2.0, 2.4, 2.5])
    assert np.isnan(across_layers(np.array([nan, nan]))).all()


def test_registered_quantity_is_exported_where_the_run_has_it():
    spread = Quantity(
        name="spread", help="For a test.", title="Spread", unit="nats",
        derive=lambda sums: sums.means["entropy"], gauge="moe_load_spread",
    )  # fmt: skip
    _, _, before = complete(SMALL)
    with registered(spread):
        registry, snapshots, _ = complete(SMALL)
        found = samples(registry)
        for index, layer in enumerate(snapshots[-1].layers):
            at = ("layer", str(layer))
            assert found["moe_load_spread", at] == snapshots[-1].per_layer["spread"][index]
        assert len(found) == num_series(SMALL)
        registry = CollectorRegistry()
        registry.register(RunCollector(before, SMALL.detail))
        assert not [name for name, *_ in samples(registry) if name == "moe_load_spread"]


def test_load_of_expert_ranks_is_that_of_the_worst_layer():
    registry, snapshots, _ = complete(SMALL)
    load = snapshots[-1].relative_load
    for rank, experts in enumerate((slice(0, 4), slice(4, 8))):
        worst = max(load[layer, experts].mean() for layer in range(3))
        key = ("moe_ep_rank_load_ratio", ("ep_rank", str(rank)))
        assert samples(registry)[key] == pytest.approx(worst)


def test_histogram_buckets_are_cumulative_and_end_in_the_count():
    registry, snapshots, _ = complete(SMALL)
    found = samples(registry)
    load = np.concatenate([s.relative_load[1] for s in snapshots])
    at = ("layer", "3")
    for bound in (0.0, 0.5, 1.1, 8.0):
        key = ("moe_expert_load_ratio_bucket", at, ("le", str(bound)))
        assert found[key] == (load <= bound).sum()
    assert found["moe_expert_load_ratio_bucket", at, ("le", "+Inf")] == 24
    assert found["moe_expert_load_ratio_count", at] == 24
    assert found["moe_expert_load_ratio_sum", at] == pytest.approx(load.sum())


def test_dense_run_exports_nothing_of_layers():
    dense = Shape(layers=0, experts=0, ranks=2, detail=ExpertDetail.FULL)
    registry, _, _ = complete(dense)
    found = samples(registry)
    assert len(found) == num_series(dense)
    assert not [name for name, *labels in found if dict(labels).get("layer")]


def test_before_the_first_step_a_run_is_alive_and_has_no_loss():
    run = make_run(SMALL, start_step=7)
    registry = CollectorRegistry()
    registry.register(RunCollector(RunState(run, clock=clock()), ExpertDetail.HISTOGRAM))
    found = samples(registry)
    assert found["moe_train_step",] == found["moe_checkpoint_last_step",] == 7
    ages = ("moe_run_age_seconds", "moe_train_last_step_age_seconds", "moe_checkpoint_age_seconds")
    assert [found[age,] for age in ages] == [250.0] * 3
    assert ("moe_train_lm_loss",) not in found
    assert ("moe_router_entropy_ratio", ("layer", "2")) not in found


def test_missing_facts_are_missing_series():
    run = make_run(SMALL, flops_per_token=None, saves_checkpoints=False)
    state, registry = RunState(run, clock=clock()), CollectorRegistry()
    state.add_step(make_step(run, 1, loss=None, grad_norm=None, runtime=None), None)
    registry.register(RunCollector(state, ExpertDetail.NONE))
    names = {name for name, *_ in samples(registry)}
    absent = ("loss", "grad_norm", "mfu", "flops", "checkpoint_last", "rank_")
    assert [n for n in names if any(word in n for word in absent)] == []


def test_sinks_of_other_processes_are_added_to_those_of_the_first():
    run, health = make_run(SMALL), SinkHealth()
    health.failed("console", "the disk is full")
    state, registry = RunState(run, clock=clock()), CollectorRegistry()
    record = make_step(run, 1)
    others = {
        "wandb": SinkState(broken=True, outages=1, dropped=7),
        "console": SinkState(outages=2),
    }
    state.add_step(replace(record, runtime=replace(record.runtime, other_sinks=others)), None)
    registry.register(RunCollector(state, ExpertDetail.NONE, health=health))
    found = samples(registry)
    assert found["moe_sink_failed", ("sink", "wandb")] == 1
    assert found["moe_sink_dropped_records_total", ("sink", "wandb")] == 7
    assert found["moe_sink_outages_total", ("sink", "console")] == 3
    assert found["moe_sink_failed", ("sink", "history")] == 0


def test_nan_loss_is_exported_and_counted():
    run = make_run(SMALL)
    state, registry = RunState(run, clock=clock()), CollectorRegistry()
    state.add_step(make_step(run, 1, loss=math.nan), None)
    registry.register(RunCollector(state, ExpertDetail.NONE))
    found = samples(registry)
    assert math.isnan(found["moe_train_lm_loss",])
    assert found["moe_train_nonfinite_total", ("kind", "loss")] == 1
    assert found["moe_train_nonfinite_total", ("kind", "gradient")] == 0


def test_text_is_byte_for_byte_what_the_library_writes():
    registry, _, state = complete(SMALL)
    run = state.view().run
    big = make_step(run, 4, loss=math.inf, grad_norm=-math.inf, learning_rate=1e-9, tokens=10**9)
    state.add_step(big, None)
    registry = CollectorRegistry()
    registry.register(RunCollector(state, ExpertDetail.FULL, clock=lambda: 5.0))
    assert write_text(registry) == generate_latest(registry)


def test_even_load_has_entropy_ratio_one():
    counts = np.array([[5, 5, 5, 5], [20, 0, 0, 0], [0, 0, 0, 0]])
    ratios = load_entropy_ratio(counts)
    assert ratios[:2].tolist() == pytest.approx([1.0, 0.0])
    assert math.isnan(ratios[2])
    assert load_entropy_ratio(np.array([[7]])).tolist() == [1.0]


def test_promtool_finds_nothing_to_complain_about():
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here; apt-get install prometheus")
    registry, _, _ = complete(replace(SMALL, detail=ExpertDetail.FULL))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=write_text(registry), capture_output=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")

"""Routing through real writers, as Megatron opens them."""

import numpy as np
import pytest
from megatron.training import global_vars

from moe_megatron.mcore.measure.writers import RoutingWriters
from moe_megatron.telemetry.catalog import find_metric
from moe_megatron.telemetry.values.layer_values import layer_values
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def snapshot(step=4, counts=((6, 2), (8, 0))):
    rows = np.array(counts, dtype=np.int64)
    return RoutingSnapshot(
        step=step,
        tokens=8,
        top_k=1,
        layers=(2, 5),
        tokens_per_expert=rows,
        assigned=np.full(2, 8),
        dropped=8 - rows.sum(axis=1),
        per_layer={
            "entropy": np.array([0.3, 0.6]),
            "aux_loss": np.array([1.0, 2.0]),
            "z_loss": np.array([0.1, 0.2]),
        },
    )


def test_tensorboard_gets_every_layer_their_mean_and_the_loads(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(tmp_path))
    RoutingWriters(writer, None, interval=1).write(snapshot())
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        f"{name}/{place}"
        for name in layer_values(snapshot())
        for place in ("layer_2", "layer_5", "mean", "min", "p50", "p90", "max")
    }
    value = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert value["moe_expert_load_max_ratio/layer_2"] == 1.5
    assert value["moe_expert_load_max_ratio/layer_5"] == 2.0
    assert value["moe_expert_load_max_ratio/mean"] == 1.75
    assert value["moe_expert_load_max_ratio/p50"] == 1.75
    assert value["moe_expert_load_max_ratio/p90"] == pytest.approx(1.95)
    assert value["moe_router_aux_loss/layer_5"] == 2.0
    assert value["moe_experts_per_token/mean"] == 1.0
    (histogram,) = events.Histograms("moe_expert_load_ratio")
    assert (histogram.step, histogram.histogram_value.num) == (4, 4)


@pytest.mark.slow
def test_wandb_gets_the_same_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(project="p", dir=tmp_path, settings=wandb.Settings(console="off"))
    writers = RoutingWriters(None, wandb, interval=1)
    for step in (4, 5):  # a step is complete for W&B when the next one begins
        writers.write(snapshot(step))
    summary = {key: run.summary.get(key) for key in run.summary.keys()}  # noqa: SIM118
    run.finish()
    assert summary["moe_expert_load_max_ratio/layer_5"] == 2.0
    assert summary["moe_experts_dead/mean"] == 0.5
    assert "moe_expert_load_ratio" in summary
    assert list(tmp_path.rglob("*.wandb"))


def test_tags_are_metrics_of_the_catalog():
    tags = [find_metric(name) for name in layer_values(snapshot())]
    assert all(metric is not None and metric.labels == ("layer",) for metric in tags)


def test_layers_without_tokens_do_not_spoil_the_mean(tmp_path):
    class Calls:
        def __init__(self):
            self.scalars, self.histograms = {}, 0

        def add_scalar(self, tag, value, step):
            self.scalars[tag] = value

        def add_histogram(self, *_):
            self.histograms += 1

    calls = Calls()
    RoutingWriters(calls, None, interval=1).write(snapshot(counts=((6, 2), (0, 0))))
    assert calls.scalars["moe_expert_load_max_ratio/mean"] == 1.5
    assert calls.scalars["moe_expert_load_max_ratio/min"] == 1.5
    assert calls.histograms == 0  # NaN has no place in one


def test_interval_is_megatrons():
    writers = RoutingWriters(object(), None, interval=5)
    assert [step for step in range(1, 12) if writers.wants(step)] == [5, 10]


def test_rank_without_writers_has_none(monkeypatch):
    monkeypatch.setattr(global_vars, "_GLOBAL_TENSORBOARD_WRITER", None)
    monkeypatch.setattr(global_vars, "_GLOBAL_WANDB_WRITER", None)
    assert RoutingWriters.of_megatron() is None

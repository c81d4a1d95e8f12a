"""The exporter as a sink: from records to what a scrape of its address answers."""

import json
import logging
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.exporter.discovery import target_address, target_labels
from moe_megatron.telemetry.exporter.metrics_server import ServerOptions
from moe_megatron.telemetry.exporter.prometheus_sink import (
    ExporterOptions,
    PrometheusSink,
    choose_detail,
)
from moe_megatron.telemetry.metric import ExpertDetail
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog, read_routing
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.profile import RoutingProfile


def scrape(sink):
    with urllib.request.urlopen(sink.url, timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def run_steps(run, steps, make_step, make_snapshot, options=None):
    """One process of a run, with the sinks in their order; scrapes after every step."""
    exporter = PrometheusSink(options or ExporterOptions())
    sinks = SinkSet([exporter.earlier, MetricsLog(), RoutingLog(), exporter])
    sinks.start(run)
    sinks.flush()
    seen = [scrape(exporter)]
    for step in steps:
        sinks.step(make_step(step), make_snapshot(step))
        sinks.flush()
        seen.append(scrape(exporter))
    sinks.close()
    return seen


def test_address_is_announced_and_written_for_discovery(make_run, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    lines = []
    shared = tmp_path / "shared"
    options = ExporterOptions(run_id="first", cluster="here", discovery_dir=shared)
    sink, run = PrometheusSink(options, announce=lines.append), make_run()
    run.run_dir.mkdir()
    sink.start(run)
    assert lines == [f"metrics: {sink.url}"]
    files = [run.run_dir / "prometheus_targets.json", shared / "first.json"]
    for file in files:
        (target,) = json.loads(file.read_text())
        assert f"http://{target['targets'][0]}/metrics" == sink.url
        assert target["labels"] == {"job": "moe-train", "cluster": "here", "run": "first"}
    sink.close()
    assert [file for file in files if file.exists()] == []


def test_run_that_failed_leaves_its_target_so_that_prometheus_misses_it(make_run):
    sink, run = PrometheusSink(ExporterOptions()), make_run()
    run.run_dir.mkdir()
    sink.start(run)
    sink.run_failed = True
    sink.close()
    assert (run.run_dir / "prometheus_targets.json").exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(sink.url, timeout=10)


def test_target_file_of_a_later_process_is_left_alone(make_run):
    sink, run = PrometheusSink(ExporterOptions()), make_run()
    run.run_dir.mkdir()
    sink.start(run)
    (run.run_dir / "prometheus_targets.json").write_text("[]")
    sink.close()
    assert (run.run_dir / "prometheus_targets.json").read_text() == "[]"


def test_folder_that_cannot_be_written_is_reported(make_run, tmp_path, caplog):
    (tmp_path / "file").touch()
    sink = PrometheusSink(ExporterOptions(discovery_dir=tmp_path / "file" / "below"))
    sink.start(make_run(run_dir=None))
    assert "below/moe.json cannot be written" in caplog.text
    assert scrape(sink)["moe_train_step",] == 0
    sink.close()


def test_labels_name_slurm_job_and_scheme(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    labels = target_labels("r", "c", "https")
    assert labels == {
        "job": "moe-train", "cluster": "c", "run": "r", "slurm_job_id": "77", "__scheme__": "https",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("host", "address"), [("10.0.0.7", "10.0.0.7:80"), ("::1", "[::1]:80"), ("node3", "node3:80")]
)
def test_target_is_what_a_scraper_connects_to(host, address):
    assert target_address(host, 80) == address
    assert target_address("0.0.0.0", 80) not in {"0.0.0.0:80", ":80"}


def test_resumed_run_never_takes_a_counter_back(make_run, make_step, make_snapshot):
    # Six steps, a checkpoint after the third, a kill, and again from there.
    first = run_steps(make_run(), range(1, 7), make_step, make_snapshot)
    profile = RoutingProfile.from_snapshots([make_snapshot(step) for step in (1, 2, 3)])
    resumed = make_run(start_step=3, earlier_routing=profile)
    second = run_steps(resumed, range(4, 9), make_step, make_snapshot)
    for name in ("moe_train_steps_total", "moe_train_tokens_total"):
        values = [seen[name,] for seen in first + second]
        assert values == sorted(values), name
    assert [seen["moe_train_steps_total",] for seen in second] == [6, 6, 6, 6, 7, 8]
    assert [seen["moe_train_step",] for seen in second] == [3, 4, 5, 6, 7, 8]
    written = list(read_routing(resumed.run_dir / "routing.jsonl"))
    assert [snapshot.step for snapshot in written] == list(range(1, 9))
    for index, layer in enumerate((2, 3)):
        routed = sum(int(s.tokens_per_expert[index].sum()) for s in written)
        dropped = sum(int(s.dropped[index]) for s in written)
        assert second[-1]["moe_tokens_routed_total", ("layer", str(layer))] == routed
        assert second[-1]["moe_tokens_dropped_total", ("layer", str(layer))] == dropped


def test_port_in_use_leaves_the_sink_out_and_training_alone(make_run, make_step, caplog):
    first = PrometheusSink(ExporterOptions())
    first.start(make_run(run_dir=None))
    port = int(first.url.rpartition(":")[2].partition("/")[0])
    log = MetricsLog()
    second = PrometheusSink(ExporterOptions(server=ServerOptions(port=port)))
    sinks = SinkSet([second.earlier, log, second])
    sinks.start(make_run())
    for step in (1, 2):
        sinks.step(make_step(step), None)
    sinks.close()
    first.close()
    (message,) = [m for m in caplog.messages if "sink exporter failed" in m]
    assert "ConfigError: metrics cannot be served" in message
    assert len((make_run().run_dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_registry_is_the_callers(make_run):
    registry = CollectorRegistry()
    sink = PrometheusSink(ExporterOptions(), registry=registry)
    sink.start(make_run(run_dir=None))
    assert "moe_train_step" in {family.name for family in registry.collect()}
    sink.close()
    assert list(registry.collect()) == []


def test_detail_that_exceeds_the_limit_is_lowered_and_reported(make_run, caplog):
    caplog.set_level(logging.WARNING)
    run = make_run(layers=tuple(range(1, 62)), num_experts=256, num_layers=61)
    assert choose_detail(run, ExpertDetail.FULL, 5000) == ExpertDetail.TOPK
    assert "metrics_expert_detail full needs" in caplog.text
    assert "exporting topk" in caplog.text
    assert choose_detail(run, ExpertDetail.FULL, 20_000) == ExpertDetail.FULL
    with pytest.raises(ConfigError, match=r"metrics_max_series \(10\) is too small"):
        choose_detail(run, ExpertDetail.NONE, 10)

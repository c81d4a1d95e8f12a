"""`moe-megatron monitor` on a real run, and every query of every dashboard on what it recorded.

The run is made so that all metrics have data: four processes (two pipeline stages of two expert
parallel processes), capacity limits that drop tokens, evaluations, checkpoints, a peak for the
MFU, every expert exported.
"""

import json
import math
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_megatron.cli import pretrain
from moe_megatron.dashboards.artifacts import dashboard_json
from moe_megatron.dashboards.check import all_panels, variable_queries
from moe_megatron.telemetry.catalog import metrics
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.telemetry.identity import run_id
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.testing.distributed import start_ranks
from moe_megatron.testing.prometheus_api import PrometheusApi

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

INTERVAL = 0.25
SCRAPES = 12
MAX_SERIES = 300
DASHBOARDS = dashboard_json()
RUN = "recorded"

TRAINING = [
    *("--config", "test_tiny", "--run-dir", RUN, "--set", "data.tasks=[text]"),
    *("--train-iters", "100000", "--save-interval", "20"),
    *("--metrics-port", "0", "--metrics-expert-detail", "full"),
    *("--metrics-token-file", "token"),
    *("--set", "training.eval_interval=20", "--set", "moe.capacity_factor=1.0"),
    *("--set", "parallel.expert_parallel_size=2"),
    *("--set", "parallel.pipeline_parallel_size=2", "--set", "telemetry.peak_tflops=1"),
]


@dataclass(frozen=True)
class Recorded:
    """A run that has ended, and the Prometheus that watched it."""

    run_dir: Path
    monitor: Any
    prometheus: PrometheusApi
    start: float
    end: float

    def fill_in(self, text: str) -> str:
        """A query with Grafana's variables replaced, as Grafana would for this time range."""
        values = {
            "__rate_interval": f"{4 * INTERVAL:g}s",
            "__range": f"{math.ceil(self.end - self.start)}s",
            "cluster": "local",
            "run": run_id(self.run_dir),
            "runs": ".+",
            "layer": "2",
            "price": "2.5",
        }
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], text)


@pytest.fixture(scope="module")
def recorded(
    moe: Callable[..., Any],
    cache: Path,
    corpus: Path,
    tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Recorded:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus; apt-get install --no-install-recommends prometheus")
    place = tmp_path_factory.mktemp("monitored")
    (place / "token").write_text("only-for-this-test\n")
    given = {"directory": place, "environment": {"MOE_MEGATRON_CACHE": str(cache)}}
    data = ["--set", f"data.paths=[{corpus}]", "--set", f"data.tokenizer={tokenizer}"]
    with start_ranks(pretrain.main, [*TRAINING, *data], world_size=4, **given) as training:
        training.wait_for("metrics: http://")
        interval = ["--interval", f"{INTERVAL * 1000:.0f}ms", "--metrics-token-file", "token"]
        monitor = moe(place, "monitor", RUN, *interval)
        monitor.wait_for("Ctrl-C stops it")
        prometheus = PrometheusApi(re.search(r"prometheus +(\S+)", monitor.output)[1])
        wait_until(lambda: (prometheus.value("moe_checkpoint_last_step") or 0) > 0)
        scrapes = "count_over_time(moe_eval_loss[1h])"
        wait_until(lambda: (prometheus.value(scrapes) or 0) >= SCRAPES)
        target = json.loads((place / RUN / TARGETS_FILE).read_text())
        assert target[0]["labels"] == {
            "job": "moe-train",
            "cluster": "local",
            "run": run_id(place / RUN),
        }
        # Of the lines that were scraped, so that a pause of this process does not matter.
        times = [float(t) for t, _ in prometheus.query("moe_train_lm_loss[1h]")[0]["values"]]
        training.send_signal(signal.SIGTERM)
        training.wait()
    return Recorded(place / RUN, monitor, prometheus, times[0], times[-1])


def wait_until(ready: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def targets() -> Iterator[Any]:
    for file, dashboard in DASHBOARDS.items():
        for panel in all_panels(dashboard):
            for target in panel.get("targets", ()):
                name = f"{file.removesuffix('.json')}-{panel['id']}{target['refId']}"
                yield pytest.param(target, id=name)


def finite_values(series: dict[str, Any]) -> list[float]:
    samples = series.get("values") or [series["value"]]
    return [float(value) for _, value in samples if math.isfinite(float(value))]


@pytest.mark.parametrize("target", list(targets()))
def test_query_of_a_panel_answers_with_named_series(recorded, target):
    expr = recorded.fill_in(target["expr"])
    prometheus, start, end = recorded.prometheus, recorded.start, recorded.end
    if target["instant"]:
        answer = prometheus.query(expr, at=end)
    else:
        answer = prometheus.query_range(expr, start, end, INTERVAL)
    assert any(finite_values(series) for series in answer), f"no data: {expr}"
    assert len(answer) <= MAX_SERIES
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert all(series["metric"].get(label) for series in answer), f"no label {label}: {expr}"


@pytest.mark.parametrize("file", DASHBOARDS)
def test_query_of_a_variable_has_values(recorded, file):
    for name, query in variable_queries(DASHBOARDS[file]).items():
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
        values = recorded.prometheus.label_values(label, recorded.fill_in(selector))
        run = [run_id(recorded.run_dir)]
        expected = {"cluster": ["local"], "run": run, "runs": run, "layer": ["1", "2"]}
        assert values == expected[name]


def test_every_metric_of_the_catalog_was_recorded_and_no_other(recorded):
    prometheus = recorded.prometheus
    names = prometheus.get("label/__name__/values", **{"match[]": '{__name__=~"moe_.+"}'})
    found = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert found == {metric.name for metric in metrics()}


def test_prometheus_agrees_with_the_log_to_the_unit(recorded):
    prometheus = recorded.prometheus
    (series,) = prometheus.query("moe_train_step", at=recorded.end)
    step = int(float(series["value"][1]))
    records = [r for r in read_routing(recorded.run_dir / ROUTING_FILE) if r.step <= step]
    assert len(records) == step
    counts = sum(record.tokens_per_expert for record in records)
    experts = prometheus.query("moe_expert_tokens_total", at=recorded.end)
    assert len(experts) == counts.size
    for series in experts:
        layer, expert = int(series["metric"]["layer"]), int(series["metric"]["expert"])
        assert int(float(series["value"][1])) == counts[layer - 1, expert]
    dropped = sum(record.dropped for record in records)
    for series in prometheus.query("moe_tokens_dropped_total", at=recorded.end):
        assert int(float(series["value"][1])) == dropped[int(series["metric"]["layer"]) - 1]


def test_rules_are_evaluated_and_a_healthy_run_fires_none(recorded):
    groups = recorded.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    firing = 'count_over_time(ALERTS{alertstate="firing"}[1h])'
    assert recorded.prometheus.query(firing) == []


def test_grafana_folder_points_at_prometheus_and_the_dashboards(recorded):
    folder = recorded.run_dir / "grafana"
    source = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == recorded.prometheus.url
    provider = yaml.safe_load((folder / "provisioning/dashboards/moe.yml").read_text())
    path = Path(provider["providers"][0]["options"]["path"])
    assert {file.name for file in path.iterdir()} == set(DASHBOARDS)


def test_second_monitor_of_a_run_says_that_one_is_at_work(recorded, moe):
    second = moe(recorded.run_dir.parent, "monitor", RUN)
    assert second.end() == 2
    assert "error: another monitor of recorded is already running" in second.output
    assert "Traceback" not in second.output


def test_port_that_is_taken_says_so(recorded, moe, tmp_path):
    port = recorded.prometheus.url.rpartition(":")[2]
    other = moe(tmp_path, "monitor", tmp_path, "--port", port)
    assert other.end() == 2
    assert f"error: port {port} of 127.0.0.1 cannot be used" in other.output


def test_monitor_goes_with_ctrl_c_and_a_new_one_has_the_old_data(recorded, moe):
    recorded.monitor.press_ctrl_c()
    assert recorded.monitor.end() == 0
    assert "Traceback" not in recorded.monitor.output
    assert recorded.monitor.family() == []

    later = moe(recorded.run_dir.parent, "monitor", RUN)
    later.wait_for("Ctrl-C stops it")
    assert "nothing to scrape" in later.output
    url = re.search(r"prometheus +(\S+)", later.output)[1]
    assert PrometheusApi(url).query("moe_train_step", at=recorded.end)
    later.process.send_signal(signal.SIGTERM)
    assert later.end() == 0
    assert later.family() == []


def test_monitor_whose_prometheus_is_killed_says_where_to_look(recorded, moe):
    monitor = moe(recorded.run_dir.parent, "monitor", RUN)
    monitor.wait_for("Ctrl-C stops it")
    (prometheus,) = [p for p in monitor.family() if p.pid != monitor.process.pid]
    prometheus.kill()
    assert monitor.end() == 2
    assert "error: Prometheus ended by itself (status -9); see recorded/prom" in monitor.output

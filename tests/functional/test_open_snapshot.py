"""A quantity that is declared here, and nowhere else, is found wherever a run shows something."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moe_megatron.dashboards.artifacts import dashboard_json
from moe_megatron.dashboards.check import all_panels, check
from moe_megatron.telemetry.catalog import metrics, quantity_names, registered
from moe_megatron.telemetry.history import RoutingHistory
from moe_megatron.telemetry.quantity import Quantity, RoutedTokens
from moe_megatron.telemetry.sinks.jsonl import read_routing
from moe_megatron.telemetry.values.layer_values import layer_values
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import MOCK_VOCAB_SIZE, Job
from moe_megatron.webapp.report import write_report

pytestmark = pytest.mark.distributed

STEPS, LAYERS, MICRO_BATCHES = 3, (1, 2), 4
NAME, GAUGE, TITLE = "score_margin", "moe_router_score_margin", "Margin of the choice"
seen: list[Any] = []
"""Scores of each call of the measure, [tokens, experts]."""


def score_margin(routed: RoutedTokens) -> Any:
    seen.append(routed.scores_TE.clone())
    best = routed.scores_TE.topk(2).values
    return best[:, 0] - best[:, 1]


MARGIN = Quantity(
    name=NAME,
    help="Mean difference of the two largest scores.",
    title=TITLE,
    note="0 is a choice that chance decides.",
    measure=score_margin,
    gauge=GAUGE,
    ideal=1.0,
    column="margin",
)


def train(folder: Path) -> None:
    """Trains with the quantity, in a process of its own, and keeps what it served and saw."""
    from prometheus_client import CollectorRegistry

    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.run.machine import choose_machine
    from moe_megatron.telemetry.exporter.exposition import write_text
    from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
    from moe_megatron.telemetry.history import HistorySink
    from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    registry = CollectorRegistry()
    exporter = PrometheusSink(ExporterOptions(), registry=registry)
    history = HistorySink(folder / "history")
    sinks = SinkSet([exporter.earlier, MetricsLog(), RoutingLog(), history, exporter])
    overrides = {
        "training.train_steps": STEPS,
        "training.warmup_steps": 0,
        "megatron.tensorboard-dir": str(folder / "events"),
        "megatron.tensorboard-log-interval": 1,
    }
    config = Job(run_dir=folder, overrides=overrides).config
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=folder / "cache",
        vocab_size=MOCK_VOCAB_SIZE,
        end_of_document=0,
        run_dir=folder,
        sinks=sinks,
    )
    with registered(MARGIN):
        outcome = engine.run(job, choose_machine(config).settings)
        assert outcome.profile is not None
        outcome.profile.save(folder / "profile.json")
        assert sinks.flush(timeout=60)
        (folder / "exposition.txt").write_bytes(write_text(registry))
        sinks.close()
    np.save(folder / "seen.npy", np.stack([scores.cpu().numpy() for scores in seen]))
    world.leave()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open") / "run"
    run_distributed(train, folder, world_size=1)
    return folder


@pytest.fixture(scope="module")
def expected(run_dir: Path) -> np.ndarray:
    """The margin of each step and layer, from the scores of all tokens, one by one."""
    calls = np.load(run_dir / "seen.npy").astype(np.float64)
    calls = calls.reshape(STEPS, MICRO_BATCHES, len(LAYERS), *calls.shape[1:])
    result = np.zeros((STEPS, len(LAYERS)))
    for step, layer in np.ndindex(result.shape):
        tokens = calls[step, :, layer].reshape(-1, calls.shape[-1])
        margins = [sorted(scores)[-1] - sorted(scores)[-2] for scores in tokens.tolist()]
        result[step, layer] = sum(margins) / len(margins)
    return result


def test_quantity_is_in_routing_jsonl_with_the_mean_over_tokens(
    run_dir: Path, expected: np.ndarray
) -> None:
    snapshots = list(read_routing(run_dir / "routing.jsonl"))
    assert [snapshot.step for snapshot in snapshots] == [1, 2, 3]
    for snapshot, margins in zip(snapshots, expected, strict=True):
        assert list(snapshot.per_layer) == [*quantity_names(), NAME]
        assert snapshot.per_layer[NAME] == pytest.approx(margins, rel=1e-6)
        assert (snapshot.per_layer["entropy"] > 0).all()
        assert snapshot.assigned.tolist() == [snapshot.tokens * snapshot.top_k] * len(LAYERS)


def test_quantity_is_in_history_and_profile(run_dir: Path, expected: np.ndarray) -> None:
    history = RoutingHistory(run_dir / "history")
    assert history.quantities == (*quantity_names(), NAME)
    assert history.series(NAME) == pytest.approx(expected, rel=1e-6)
    profile = RoutingProfile.load(run_dir / "profile.json")
    assert profile.per_layer[NAME] == pytest.approx(expected.mean(axis=0), rel=1e-6)


def test_quantity_is_exported_and_in_tensorboard(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (run_dir / "exposition.txt").read_text()
    assert f"# HELP {GAUGE} {MARGIN.help}\n# TYPE {GAUGE} gauge\n" in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    *_, last = read_routing(run_dir / "routing.jsonl")
    served = {int(sample.labels["layer"]): sample.value for sample in families[GAUGE].samples}
    assert served == dict(zip(LAYERS, last.per_layer[NAME].tolist(), strict=True))
    events = EventAccumulator(str(run_dir / "events"))
    events.Reload()
    for index, layer in enumerate(LAYERS):
        written = [event.value for event in events.Scalars(f"{GAUGE}/layer_{layer}")]
        assert written[-1] == pytest.approx(last.per_layer[NAME][index])
        assert len(written) == STEPS
    with registered(MARGIN):
        assert layer_values(last)[GAUGE].tolist() == last.per_layer[NAME].tolist()


def test_quantity_is_drawn_in_the_report(run_dir: Path, tmp_path: Path) -> None:
    with registered(MARGIN):
        html = write_report(run_dir, tmp_path / "report.html").read_text()
    row = re.search(rf"<tr><td>{TITLE}[^<]*</td>(.*?)</tr>", html)
    assert row is not None
    assert MARGIN.note in row[1]
    assert re.search(r"<td>[\d.]+ \(layer \d+\)</td>", row[1])


def test_quantity_is_in_dashboards_and_in_the_list_of_metrics() -> None:
    assert GAUGE not in {metric.name for metric in metrics()}
    with registered(MARGIN):
        dashboards = dashboard_json()
        assert check(dashboards) == []
        assert GAUGE in {metric.name for metric in metrics()}
    for file in ("routing.json", "experts.json"):
        (panel,) = [panel for panel in all_panels(dashboards[file]) if panel["title"] == TITLE]
        assert f"({GAUGE}{{" in panel["targets"][0]["expr"]
        assert MARGIN.help in panel["description"]

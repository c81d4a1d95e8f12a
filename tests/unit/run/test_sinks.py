"""Which receivers of records a configuration asks for."""

from pathlib import Path

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.run.sinks import configured_sinks, make_exporter
from moe_megatron.telemetry.exporter.earlier_totals import EarlierTotals
from moe_megatron.telemetry.exporter.prometheus_sink import PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.metric import ExpertDetail
from moe_megatron.telemetry.sinks.console import ConsoleSink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sample_files import SampleFiles


def config(**fields):
    overrides = {f"telemetry.{name}": value for name, value in fields.items()}
    return apply_overrides(load_config("test_tiny"), overrides)


def options(run_dir=None, **fields):
    return make_exporter(config(metrics_port=0, **fields), run_dir)._options


def test_no_port_is_no_exporter():
    assert make_exporter(config(), None) is None


def test_fields_reach_the_exporter(tmp_path, monkeypatch):
    monkeypatch.delenv("NEMO_LENS_RUN_ID", raising=False)
    made = options(
        tmp_path / "third",
        metrics_host="10.0.0.1",
        metrics_expert_detail="topk",
        metrics_max_series=77,
        metrics_discovery_dir="sd",
        metrics_tls_certificate="c.pem",
        metrics_tls_key="k.pem",
        cluster="east",
    )
    assert (made.server.host, made.server.port) == ("10.0.0.1", 0)
    assert (str(made.server.certificate), str(made.server.key)) == ("c.pem", "k.pem")
    assert (made.detail, made.max_series) == (ExpertDetail.TOPK, 77)
    assert made.run_id.startswith("third-")
    assert (made.cluster, str(made.discovery_dir)) == ("east", "sd")


def test_past_is_read_before_the_logs_and_published_after_them(tmp_path):
    sinks = configured_sinks(config(metrics_port=0, history=False), tmp_path)
    kinds = [EarlierTotals, MetricsLog, RoutingLog, SampleFiles, PrometheusSink, ConsoleSink]
    assert [type(sink) for sink in sinks] == kinds
    assert sinks[0] is sinks[4].earlier


def test_token_is_that_of_the_file_or_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_MEGATRON_METRICS_TOKEN", raising=False)
    assert options().server.token is None
    monkeypatch.setenv("MOE_MEGATRON_METRICS_TOKEN", "of the variable")
    assert options().server.token == "of the variable"
    (tmp_path / "token").write_text("of-the-file\n")
    assert options(metrics_token_file=str(tmp_path / "token")).server.token == "of-the-file"


@pytest.mark.parametrize("content", [b"", b"two\nlines", "f\u00fcr".encode()])
def test_file_without_a_token_is_explained(tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match="must hold one line of printable ASCII"):
        options(metrics_token_file=str(tmp_path / "token"))


def test_file_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"the token file .*none cannot be read"):
        options(metrics_token_file=str(tmp_path / "none"))


def kinds(run_dir=Path("runs/a"), **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    config = apply_overrides(load_config("test_tiny"), named)
    return [type(sink) for sink in configured_sinks(config, run_dir)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, [MetricsLog, RoutingLog, HistorySink, SampleFiles, ConsoleSink]),
        ({"run_dir": None}, [MetricsLog, RoutingLog, ConsoleSink]),
        ({"telemetry__console": False}, [MetricsLog, RoutingLog, HistorySink, SampleFiles]),
        ({"telemetry__routing_log": False}, [MetricsLog, HistorySink, SampleFiles, ConsoleSink]),
        ({"telemetry__history": False}, [MetricsLog, RoutingLog, SampleFiles, ConsoleSink]),
        (
            {"telemetry__sample_interval": 0},
            [MetricsLog, RoutingLog, HistorySink, ConsoleSink],
        ),
        ({"telemetry__enabled": False}, [MetricsLog, ConsoleSink]),
        ({"moe__num_experts": None}, [MetricsLog, ConsoleSink]),
    ],
)
def test_sinks_follow_the_configuration(overrides, expected):
    assert kinds(**overrides) == expected


def test_unknown_place_for_histories_is_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"cannot be kept at 'ftp://host/all/a'.*s3://BUCKET"):
        kinds(telemetry__history_address="ftp://host/all")


@pytest.mark.parametrize("plain", [None, True, False])
def test_lines_are_printed_unless_somebody_watches(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks and CI do
    (console,) = (
        sink
        for sink in configured_sinks(config(plain_console=plain), tmp_path)
        if isinstance(sink, ConsoleSink)
    )
    assert console._console.is_terminal is (plain is False)

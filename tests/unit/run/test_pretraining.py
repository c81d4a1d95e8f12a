"""What surrounds Megatron's loop; runs with it are in tests/functional."""

from pathlib import Path

import pytest

from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.run import pretraining
from moe_megatron.run.machine import choose_machine
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.console import ConsoleSink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.values.records import RunInfo


def sinks(run_dir=Path("runs/a"), **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    config = apply_overrides(load_config("test_tiny"), named)
    return [type(sink) for sink in pretraining._configured_sinks(config, run_dir)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, [MetricsLog, RoutingLog, HistorySink, ConsoleSink]),
        ({"run_dir": None}, [MetricsLog, RoutingLog, ConsoleSink]),
        ({"telemetry__console": False}, [MetricsLog, RoutingLog, HistorySink]),
        ({"telemetry__routing_log": False}, [MetricsLog, HistorySink, ConsoleSink]),
        ({"telemetry__history": False}, [MetricsLog, RoutingLog, ConsoleSink]),
        ({"telemetry__enabled": False}, [MetricsLog, ConsoleSink]),
        ({"moe__num_experts": None}, [MetricsLog, ConsoleSink]),
    ],
)
def test_sinks_follow_the_configuration(overrides, expected):
    assert sinks(**overrides) == expected


def test_unknown_place_for_histories_is_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"cannot be kept at 'ftp://host/all/a'.*s3://BUCKET"):
        sinks(telemetry__history_address="ftp://host/all")


def test_configuration_is_written_by_rank_0_only(tmp_path):
    config = load_config("test_tiny")
    pretraining._write_config(config, tmp_path / "run", rank=1)
    assert list((tmp_path / "run").iterdir()) == []
    pretraining._write_config(config, tmp_path / "run", rank=0)
    assert load_config(tmp_path / "run" / "config.yaml") == config


def test_run_directory_below_a_file_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError,
        match=r"the run directory .*file/run cannot be written \(Not a directory\). Change its "
        r"permissions or free space, or choose another one with --run-dir.",
    ):
        pretraining._write_config(load_config("test_tiny"), tmp_path / "file" / "run", rank=0)


@pytest.mark.parametrize(("error", "left"), [(CheckpointError, True), (KeyboardInterrupt, False)])
def test_run_that_fails_leaves_its_target_for_prometheus_to_miss(
    tmp_path, monkeypatch, error, left
):
    run_dir = tmp_path / "run"
    config = apply_overrides(
        load_config("test_tiny"), {"telemetry.metrics_port": 0, "telemetry.console": False}
    )
    info = RunInfo(
        run_dir=run_dir, total_steps=1, start_step=0, num_layers=2, num_experts=4, top_k=2,
        world_size=1, layers=(1, 2), description="",
    )  # fmt: skip

    def end(job, machine):
        job.sinks.start(info)
        assert job.sinks.flush()
        assert (run_dir / TARGETS_FILE).exists()
        raise error("the disk is full")

    monkeypatch.setattr(pretraining.engine, "run", end)
    data = PreparedData(paths=(), cache=tmp_path, vocab_size=512, end_of_document=0)
    with pytest.raises(error):
        pretraining.pretrain(config, choose_machine(config), data, run_dir=run_dir)
    assert (run_dir / TARGETS_FILE).exists() is left


def test_number_of_words_is_that_of_the_loaded_model_or_else_of_the_tokenizer(tmp_path):
    fresh = load_config("test_tiny")
    assert pretraining._with_vocabulary(fresh, 300).data.vocab_size == 300
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    (tmp_path / "release").mkdir()
    loading = apply_overrides(fresh, {"checkpoint.load": str(tmp_path)})
    assert pretraining._with_vocabulary(loading, 300).data.vocab_size == 300
    saved = dump_yaml(apply_overrides(fresh, {"data.vocab_size": 384}))
    (tmp_path / "release" / "config.yaml").write_text(saved)
    assert pretraining._with_vocabulary(loading, 300).data.vocab_size == 384
    with pytest.raises(ConfigError, match=r"tokenizer has 385 words and the model in .* has 384;"):
        pretraining._with_vocabulary(loading, 385)

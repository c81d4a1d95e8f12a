"""What surrounds Megatron's loop; runs with it are in tests/functional."""

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.telemetry.console import ConsoleSink
from moe_megatron.telemetry.jsonl import MetricsLog, RoutingLog
from moe_megatron.training import pretraining


def sinks(**overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    config = apply_overrides(load_config("test_tiny"), named)
    return [type(sink) for sink in pretraining._configured_sinks(config)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, [MetricsLog, RoutingLog, ConsoleSink]),
        ({"telemetry__console": False}, [MetricsLog, RoutingLog]),
        ({"telemetry__routing_log": False}, [MetricsLog, ConsoleSink]),
        ({"telemetry__enabled": False}, [MetricsLog, ConsoleSink]),
        ({"moe__num_experts": None}, [MetricsLog, ConsoleSink]),
    ],
)
def test_sinks_follow_the_configuration(overrides, expected):
    assert sinks(**overrides) == expected


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

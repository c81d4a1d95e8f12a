"""What stops a monitor before Prometheus runs; the rest is in tests/functional."""

import pytest
import yaml

from moe_megatron.cli.main import main
from moe_megatron.cli.verbs.monitor import read_thresholds
from moe_megatron.dashboards.prometheus_config import PrometheusConfig, prometheus_config
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.errors import EXIT_CODE


def test_missing_prometheus_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["monitor", str(tmp_path)]) == EXIT_CODE
    assert "apt-get install --no-install-recommends prometheus" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["monitor", str(tmp_path / "file")]) == EXIT_CODE
    assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_port_out_of_range_is_refused(tmp_path, capsys):
    assert main(["monitor", str(tmp_path), "--port", "65536"]) == EXIT_CODE
    assert "--port must be 0 (a free port) to 65535, not 65536" in capsys.readouterr().err


def test_thresholds_are_read_by_name():
    assert read_thresholds([]) == Thresholds()
    words = ["checkpoint_seconds=3600", "drop_ratio=0.2"]
    assert read_thresholds(words) == Thresholds(checkpoint_seconds=3600, drop_ratio=0.2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("drop_ration=1", "there is no threshold 'drop_ration'. Did you mean 'drop_ratio'?"),
        ("drop_ratio", "drop_ratio must be a positive number, not ''"),
        ("drop_ratio=-1", "drop_ratio must be a positive number, not '-1'"),
        ("drop_ratio=nan", "drop_ratio must be a positive number, not 'nan'"),
    ],
)
def test_threshold_that_is_none_is_refused(tmp_path, capsys, word, message):
    assert main(["monitor", str(tmp_path), "--threshold", word]) == EXIT_CODE
    assert message in capsys.readouterr().err


def test_configuration_reads_the_token_from_its_file_and_checks_the_certificate(tmp_path):
    config = PrometheusConfig(
        target_files=("a.json",), token_file=tmp_path / "token", ca_file=tmp_path / "ca.pem"
    )
    job = yaml.safe_load(yaml.safe_dump(prometheus_config(config)))["scrape_configs"][0]
    assert job["authorization"] == {"credentials_file": str(tmp_path / "token")}
    assert job["tls_config"] == {"ca_file": str(tmp_path / "ca.pem")}

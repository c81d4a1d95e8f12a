"""What `moe-megatron monitor` checks and waits for before it starts a server."""

import threading
import time
from pathlib import Path

import pytest

from moe_megatron.cli.verbs import monitor
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize("text", ["5s", "500ms", "1m30s", "2h", "1d"])
def test_time_that_prometheus_reads_is_taken(text: str) -> None:
    monitor.check_interval(text)


@pytest.mark.parametrize("text", ["", "5", "five", "0s", "-1s", "s", "1.5s", "5s 5s"])
def test_other_time_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--interval must be a time such as .*, not '{text}'"):
        monitor.run([str(tmp_path), f"--interval={text}"])


def test_external_url_that_is_no_address_is_refused(tmp_path: Path) -> None:
    monitor.check_external_url("https://prometheus.example.org:9090/moe")
    with pytest.raises(ConfigError, match=r"--external-url must be an address .*, not 'me:90'"):
        monitor.run([str(tmp_path), "--external-url", "me:90"])


def test_run_that_has_no_folder_yet_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin() -> None:
        time.sleep(0.3)
        (tmp_path / "run").mkdir()

    thread = threading.Thread(target=begin)
    thread.start()
    monitor._wait_for(tmp_path / "run")
    thread.join()
    said = f"waiting for {tmp_path / 'run'}, which does not exist yet; Ctrl-C stops it\n"
    assert capsys.readouterr().out == said

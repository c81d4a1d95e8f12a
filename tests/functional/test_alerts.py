"""Faults in real training runs raise the right alert at a real Alertmanager, and no other.

The rules are those of the repository with all their times shortened (`TIME_SCALE`).
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.dashboards.local_prometheus import LocalPrometheus, MonitorOptions
from moe_megatron.dashboards.prometheus_config import alertmanager_config
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.dashboards.yaml_text import yaml_text
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.testing.ports import free_port
from moe_megatron.testing.prometheus_api import AlertReceiver, PrometheusApi

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]

TIME_SCALE = 1 / 120
LIMITS = Thresholds(
    time_scale=TIME_SCALE,
    # 10 s: two processes and three servers share the cores with other tests.
    stall_seconds=10 / TIME_SCALE,
    # No limit: the processes do not have a core each.
    straggler_ratio=10,
)
QUIET_SECONDS = 7.0
"""Longer than every `for` after scaling: what has not arrived by then will not."""

HIDDEN = {"collapse": "MoEDeadExperts"}
"""Fires as a consequence, and must not arrive."""

EXPECTED = {
    "collapse": "MoEExpertCollapse",
    "nan": "MoENonFinite",
    "stall": "MoETrainingStalled",
    "kill": "MoEExporterDown",
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[AlertReceiver]:
    with AlertReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def alertmanager(receiver: AlertReceiver, tmp_path_factory: Any) -> Iterator[str]:
    """Address of an Alertmanager that sends to the receiver."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None or shutil.which("prometheus") is None:
        pytest.skip(
            "no prometheus and Alertmanager; apt-get install --no-install-recommends prometheus "
            "prometheus-alertmanager"
        )
    folder = tmp_path_factory.mktemp("alertmanager")
    config = folder / "alertmanager.yml"
    config.write_text(yaml_text(alertmanager_config(receiver.url, group_wait="500ms")))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def training(torchrun: Callable[..., Any], place: Path) -> Any:
    return torchrun(place, 2, "-m", "moe_megatron.testing.faulty_training", place, *EXPECTED)


@pytest.mark.parametrize("fault", EXPECTED)
def test_fault_raises_its_alert_and_no_other(fault, alertmanager, receiver, training, place):
    run_dir = place / fault
    wait_until(lambda: (run_dir / TARGETS_FILE).exists(), training)
    options = MonitorOptions(interval="250ms", alertmanagers=(alertmanager,), limits=LIMITS)
    server = LocalPrometheus(run_dir, options)
    try:
        prometheus = PrometheusApi(server.url)
        wait_until(
            lambda: (prometheus.value("count_over_time(moe_train_lm_loss[1h])") or 0) > 12,
            training,
        )
        assert arrived(receiver, fault) == set()
        (run_dir / "go").touch()
        wait_until(lambda: arrived(receiver, fault), None)
        time.sleep(QUIET_SECONDS)
        if fault in HIDDEN:
            assert prometheus.query(f'ALERTS{{alertname="{HIDDEN[fault]}",alertstate="firing"}}')
        assert arrived(receiver, fault) == {EXPECTED[fault]}
    finally:
        (run_dir / "stop").touch()
        server.close()


def arrived(receiver: AlertReceiver, run: str) -> set[str]:
    """Names of the alerts of a run."""
    return {a["labels"]["alertname"] for a in receiver.alerts if a["labels"]["run"] == run}


def wait_until(ready: Callable[[], Any], training: Any | None, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if training is not None:
            assert training.process.poll() is None, training.output
        assert time.monotonic() < deadline
        time.sleep(0.1)

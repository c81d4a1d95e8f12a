"""Faults in real training runs raise the right alert at a real Alertmanager, and no other.

It waits for a minute, mostly for alerts to stay away, so it is deep. In `make test` the same rules
fire, and only when they should, over series that promtool plays (`tests/unit/dashboards/`
`test_rules.py`), and a real Prometheus reads a run (`test_monitoring.py`).

The rules are those of the repository with all their times shortened (`TIME_SCALE`).
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.dashboards.local_prometheus import LocalPrometheus, MonitorOptions
from moe_megatron.dashboards.prometheus_config import alertmanager_config
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.dashboards.yaml_text import yaml_text
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.testing.distributed import RankError, Ranks, start_ranks
from moe_megatron.testing.faulty_training import main
from moe_megatron.testing.ports import free_port
from moe_megatron.testing.prometheus_api import AlertReceiver, PrometheusApi

pytestmark = [pytest.mark.deep, pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]

TIME_SCALE = 1 / 120
LIMITS = Thresholds(
    time_scale=TIME_SCALE,
    # 10 s: six processes and five servers share the cores with other tests.
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
WORLD_SIZES = {"collapse": 1, "nan": 1, "stall": 2, "kill": 2}
"""Ranks of the runs; two where rank 0 is watched while the other goes wrong."""
TRUE_ON_A_BUSY_MACHINE = {
    "MoEExporterDown": 'min_over_time(up{job="moe-train"}[1h]) == 0',
    "MoETrainingStalled": ("max_over_time(moe_train_last_step_age_seconds[1h]) > 10"),
}
"""What has an answer where an alert told the truth: all times are short, and the scheduler is not
ours. Such an alert may stand beside the expected one."""


@dataclass(frozen=True)
class Watched:
    """A run, and the Prometheus that watches it."""

    run_dir: Path
    ranks: Ranks
    prometheus: PrometheusApi


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
def watched(
    alertmanager: str, receiver: AlertReceiver, cache: Path, tmp_path_factory: Any
) -> Iterator[dict[str, Watched]]:
    """Runs by their fault, all at once; after the faults, their alerts, and some quiet."""
    place = tmp_path_factory.mktemp("faults")
    options = MonitorOptions(interval="500ms", alertmanagers=(alertmanager,), limits=LIMITS)
    with ExitStack() as stack:
        started: dict[str, Ranks] = {}
        for fault in EXPECTED:
            environment = {"MOE_MEGATRON_CACHE": str(cache), "NEMO_LENS_RUN_ID": fault}
            size = WORLD_SIZES[fault]
            ranks = start_ranks(main, place, fault, world_size=size, environment=environment)
            started[fault] = stack.enter_context(ranks)
            if len(started) == 1:  # it fills the cache, which the others find
                ranks.wait_for("step 1/")
        watched: dict[str, Watched] = {}
        for fault, ranks in started.items():
            run_dir = place / fault
            wait_until((run_dir / TARGETS_FILE).exists, ranks)
            server = LocalPrometheus(run_dir, options)
            stack.callback(server.close)
            watched[fault] = Watched(run_dir, ranks, PrometheusApi(server.url))
        for run in watched.values():
            wait_until(lambda p=run.prometheus: healthy_scrapes(p) > 8, run.ranks)
        assert [alert["labels"] for alert in receiver.alerts if not excused(alert, watched)] == []
        for run in watched.values():
            (run.run_dir / "go").touch()
        with suppress(AssertionError):  # each test says for itself what has not come
            wait_until(lambda: all(EXPECTED[f] in arrived(receiver, f) for f in EXPECTED))
        for fault, name in HIDDEN.items():
            with suppress(AssertionError):
                wait_until(lambda p=watched[fault].prometheus, n=name: firing(p, n))
        time.sleep(QUIET_SECONDS)
        yield watched


@pytest.mark.parametrize(
    "fault",
    # The rules have tests of their own (tests/unit/dashboards/test_rules.py).
    [
        pytest.param(f, marks=() if f in {"collapse", "kill"} else pytest.mark.deep)
        for f in EXPECTED
    ],
)
def test_fault_raises_its_alert_and_no_other(
    fault: str, receiver: AlertReceiver, watched: dict[str, Watched]
) -> None:
    if fault in HIDDEN:
        assert firing(watched[fault].prometheus, HIDDEN[fault])
    assert EXPECTED[fault] in arrived(receiver, fault)
    others = [alert for alert in receiver.alerts if alert["labels"]["run"] == fault]
    unexpected = [
        alert["labels"]
        for alert in others
        if alert["labels"]["alertname"] != EXPECTED[fault] and not excused(alert, watched)
    ]
    assert unexpected == []


def arrived(receiver: AlertReceiver, run: str) -> set[str]:
    """Names of the alerts of a run."""
    return {a["labels"]["alertname"] for a in receiver.alerts if a["labels"]["run"] == run}


def excused(alert: dict[str, Any], watched: dict[str, Watched]) -> bool:
    """Whether Prometheus saw what the alert says, and a busy machine may have caused it."""
    condition = TRUE_ON_A_BUSY_MACHINE.get(alert["labels"]["alertname"])
    run = watched[alert["labels"]["run"]]
    return condition is not None and bool(run.prometheus.query(condition))


def healthy_scrapes(prometheus: PrometheusApi) -> float:
    return prometheus.value("count_over_time(moe_train_lm_loss[1h])") or 0


def firing(prometheus: PrometheusApi, name: str) -> bool:
    return bool(prometheus.query(f'ALERTS{{alertname="{name}",alertstate="firing"}}'))


def wait_until(ready: Callable[[], Any], ranks: Ranks | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if ranks is not None and len(ranks.running()) < len(ranks.processes):
            raise RankError(ranks.wait())
        assert time.monotonic() < deadline
        time.sleep(0.1)

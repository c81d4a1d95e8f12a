"""A Prometheus for one run, with its data, configuration and rules in the run folder.

It scrapes the target in the run's target file while that file exists, and answers queries about
past scrapes as long as the folder exists. It listens on the loopback address, without a password.
"""

import fcntl
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from moe_megatron.dashboards.artifacts import dashboard_files, grafana_files, rule_files
from moe_megatron.dashboards.build import write_files
from moe_megatron.dashboards.prometheus_config import PrometheusConfig, prometheus_config
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.dashboards.yaml_text import yaml_text
from moe_megatron.errors import BackendUnavailableError, ConfigError, DataError
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE

HOST = "127.0.0.1"

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LOG_LINES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorOptions:
    """How a run is monitored.

    Attributes:
        port: port of Prometheus; 0 for any free one.
        external_url: where others reach this Prometheus, for the links of alerts; its own
            address by default.
        interval: between scrapes, and between evaluations of rules.
        alertmanagers: addresses, HOST:PORT, that alerts are sent to.
        limits: thresholds of the alerts.
        token_file: file with the bearer token that the exporter requires.
        ca_file: certificate authority that signed the exporter's certificate.
    """

    port: int = 0
    external_url: str | None = None
    interval: str = "5s"
    alertmanagers: tuple[str, ...] = ()
    limits: Thresholds = field(default_factory=Thresholds)
    token_file: Path | None = None
    ca_file: Path | None = None


class LocalPrometheus:
    """Prometheus as a child process.

    Args:
        run_dir: Folder of a run, training or finished.
        options: How to monitor.

    Raises:
        BackendUnavailableError: Prometheus is not installed, does not start, or already runs there.
        ConfigError: The port is taken.
        DataError: There is no such folder.
    """

    def __init__(self, run_dir: Path, options: MonitorOptions) -> None:
        if not run_dir.is_dir():
            raise DataError(
                f"{run_dir} is not a folder; give the folder of a run, such as runs/demo_moe."
            )
        program = find_prometheus()
        self.folder = run_dir / "prometheus"
        self.grafana_folder = run_dir.resolve() / "grafana"
        self.port = _free_port(options.port)
        self.url = f"http://{HOST}:{self.port}"
        lock = self._lock()
        self._write(run_dir.resolve(), options)
        self._log = self.folder / "prometheus.log"
        command = [
            program,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            "--storage.tsdb.retention.time=10y",
            f"--web.listen-address={HOST}:{self.port}",
            f"--web.external-url={options.external_url or self.url}",
            "--web.route-prefix=/",
        ]
        with self._log.open("wb") as log:
            # In a session of its own, so that Ctrl-C does not reach it and `close` ends it.
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        lock.close()  # Prometheus now holds the lock for as long as it lives
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> IO[bytes]:
        # Two in one folder would destroy its data, and Debian's Prometheus does not prevent that.
        self.folder.mkdir(exist_ok=True)
        lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise BackendUnavailableError(
                f"another monitor of {self.folder.parent} is already running; use that one, or "
                f"stop it. {self.folder / 'prometheus.log'} says where it listens."
            ) from error
        return lock

    def _write(self, run_dir: Path, options: MonitorOptions) -> None:
        folder = run_dir / "prometheus"
        config = PrometheusConfig(
            target_files=(str(run_dir / TARGETS_FILE),),
            rule_files=(str(folder / "rules" / "*.yml"),),
            alertmanagers=options.alertmanagers,
            interval=options.interval,
            discovery_interval="5s",
            token_file=None if options.token_file is None else options.token_file.resolve(),
            ca_file=None if options.ca_file is None else options.ca_file.resolve(),
        )
        write_files(folder, rule_files(options.limits))
        (folder / "prometheus.yml").write_text(
            yaml_text(prometheus_config(config)), encoding="utf-8"
        )
        dashboards = run_dir / "grafana" / "dashboards"
        write_files(
            run_dir / "grafana",
            dashboard_files() | grafana_files(str(dashboards), self.url, options.interval),
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self._fail("ended at once")
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self._fail(f"was not ready after {_START_SECONDS:.0f} seconds")

    def _fail(self, what: str) -> None:
        raise BackendUnavailableError(
            f"Prometheus {what}; {self._log} ends with:\n" + "\n".join(self._last_log_lines())
        )

    def _last_log_lines(self) -> list[str]:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        bad = [line for line in lines if "level=error" in line] or lines
        return bad[-_LOG_LINES:]

    def close(self) -> None:
        """Stop Prometheus; its data is kept."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_prometheus() -> str:
    """Path of the program `prometheus`.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise BackendUnavailableError(
            "Prometheus is not installed; on Debian and Ubuntu: "
            "apt-get install --no-install-recommends prometheus"
        )
    return program


def _free_port(wanted: int) -> int:
    """The wanted port if it is free; any free port if it is 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise ConfigError(
                f"port {wanted} of {HOST} cannot be used ({error.strerror}); give another with "
                "--port, or 0 for any free one."
            ) from error
        port: int = probe.getsockname()[1]
        return port

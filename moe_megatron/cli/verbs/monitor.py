"""`moe-megatron monitor`: start a Prometheus server for a run, in its folder."""

import argparse
import math
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from moe_megatron.cli.parser import Parser
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.dashboards.local_prometheus import LocalPrometheus, MonitorOptions
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.files import user_path
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE

_TIME = re.compile(r"(?:\d+d)?(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?")
_LOOK_SECONDS = 0.5

_EPILOG = """\
example:
  moe-megatron train --run-dir runs/a --metrics-port 0 &
  moe-megatron monitor runs/a"""


def run(argv: Sequence[str]) -> int:
    """Run the verb, until Ctrl-C or SIGTERM.

    Args:
        argv: What follows `moe-megatron monitor`.

    Returns:
        The exit code.

    Raises:
        BackendUnavailableError: Prometheus is not installed, does not start, or exits by itself.
        ConfigError: The port is invalid or taken, or a threshold, time or address is invalid.
        DataError: The folder of the run is a file.
    """
    options = _parser().parse_args(argv)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port must be 0 (a free port) to 65535, not {options.port}.")
    check_interval(options.interval)
    check_external_url(options.external_url)
    run_dir: Path = options.run_dir
    for number in (signal.SIGINT, signal.SIGTERM):
        # SIGINT as well: a shell without job control starts background jobs with SIGINT ignored.
        signal.signal(number, _interrupt)
    try:
        _wait_for(run_dir)
    except KeyboardInterrupt:
        print("stopped before the run began", flush=True)
        return 0
    server = LocalPrometheus(
        run_dir,
        MonitorOptions(
            port=options.port,
            interval=options.interval,
            external_url=options.external_url,
            alertmanagers=tuple(options.alertmanager),
            limits=read_thresholds(options.threshold),
            token_file=options.metrics_token_file,
            ca_file=options.metrics_ca_file,
        ),
    )
    try:
        _announce(run_dir, server)
        server.process.wait()
    except KeyboardInterrupt:
        print("stopped; the data stays in the run folder", flush=True)
        return 0
    finally:
        server.close()
    raise BackendUnavailableError(
        f"Prometheus ended by itself (status {server.process.returncode}); see "
        f"{server.folder / 'prometheus.log'}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron monitor",
        description="Start a Prometheus server for a run, in its folder, on the loopback address. "
        "It works while the run trains and afterwards.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=user_path, metavar="RUN_DIR", help="folder of a run")
    add("--port", type=int, default=0, help="port of Prometheus (default: a free one)")
    add("--interval", default="5s", metavar="TIME", help="time between scrapes (default: 5s)")
    add(
        "--external-url",
        metavar="URL",
        help="address of this Prometheus in links of alerts (default: its own on this machine)",
    )
    add(
        "--alertmanager",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="Alertmanager to send alerts to (repeatable)",
    )
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="threshold of an alert, such as checkpoint_seconds=3600 (repeatable; see "
        "docs/monitoring.md)",
    )
    add(
        "--metrics-token-file",
        type=user_path,
        metavar="FILE",
        help="token that the exporter requires",
    )
    add(
        "--metrics-ca-file",
        type=user_path,
        metavar="FILE",
        help="certificate authority of the exporter's TLS certificate",
    )
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def check_interval(text: str) -> None:
    """Check a time as Prometheus reads it.

    Raises:
        ConfigError: It is none, or zero.
    """
    if not _TIME.fullmatch(text) or not re.search("[1-9]", text):
        raise ConfigError(
            f"--interval must be a time such as 500ms, 5s or 1m30s, not '{text}'; a run rarely "
            "needs less than 5s."
        )


def check_external_url(text: str | None) -> None:
    """Check the address under which others reach Prometheus.

    Raises:
        ConfigError: It is no http address.
    """
    if text is not None and not re.fullmatch(r"https?://[^\s/]+\S*", text):
        raise ConfigError(
            f"--external-url must be an address such as https://prometheus.example.org, not "
            f"'{text}'."
        )


def _wait_for(run_dir: Path) -> None:
    """Wait until the folder of a run exists: the run may start after its monitor."""
    if not run_dir.exists():
        print(f"waiting for {run_dir}, which does not exist yet; Ctrl-C stops it", flush=True)
    while not run_dir.exists():
        time.sleep(_LOOK_SECONDS)


def read_thresholds(words: Sequence[str]) -> Thresholds:
    """Parse thresholds of the form NAME=NUMBER.

    Raises:
        ConfigError: There is no such threshold, or its value is not a positive number.
    """
    names = [field.name for field in fields(Thresholds)]
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in names:
            raise ConfigError(
                f"--threshold: there is no threshold '{name}'.{nearest(name, names)} "
                f"Thresholds are: {join_words(names, 'and')}."
            )
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = math.nan
        if not 0 < values[name] < math.inf:
            raise ConfigError(f"--threshold {name} must be a positive number, not '{text}'.")
    return Thresholds(**values)


def _announce(run_dir: Path, server: LocalPrometheus) -> None:
    lines = [f"prometheus  {server.url}", f"alerts      {server.url}/alerts"]
    lines.append(f"grafana     GF_PATHS_PROVISIONING={server.grafana_folder / 'provisioning'}")
    if not (run_dir / TARGETS_FILE).exists():
        lines.append(
            f"nothing to scrape: {run_dir / TARGETS_FILE} does not exist. A run writes it while it "
            "trains with --metrics-port; metrics scraped earlier can still be queried."
        )
    lines.append("Ctrl-C stops it")
    print("\n".join(lines), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

"""`moe-megatron monitor`: start a Prometheus server for a run, in its folder."""

import argparse
import math
import signal
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.dashboards.local_prometheus import LocalPrometheus, MonitorOptions
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE

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
        ConfigError: The port is invalid or taken, or a threshold is invalid.
        DataError: The folder does not exist.
    """
    options = _parser().parse_args(argv)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port must be 0 (a free port) to 65535, not {options.port}.")
    run_dir: Path = options.run_dir
    for number in (signal.SIGINT, signal.SIGTERM):
        # SIGINT as well: a shell without job control starts background jobs with SIGINT ignored.
        signal.signal(number, _interrupt)
    server = LocalPrometheus(
        run_dir,
        MonitorOptions(
            port=options.port,
            interval=options.interval,
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
    parser = argparse.ArgumentParser(
        prog="moe-megatron monitor",
        description="Start a Prometheus server for a run, in its folder, on the loopback address. "
        "It works while the run trains and afterwards.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run")
    add("--port", type=int, default=0, help="port of Prometheus (default: a free one)")
    add("--interval", default="5s", metavar="TIME", help="time between scrapes (default: 5s)")
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
    add("--metrics-token-file", type=Path, metavar="FILE", help="token that the exporter requires")
    add(
        "--metrics-ca-file",
        type=Path,
        metavar="FILE",
        help="certificate authority of the exporter's TLS certificate",
    )
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


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

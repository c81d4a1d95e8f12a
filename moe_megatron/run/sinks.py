"""Builds the sinks that a configuration asks for: logs, history, samples, exporter and console.

Mistakes (a missing token file, for example) are found here, before training starts.
"""

import os
import sys
from pathlib import Path

from rich.console import Console

from moe_megatron.config import RunConfig
from moe_megatron.live.notebook import WIDTH as NOTEBOOK_WIDTH
from moe_megatron.live.watching import in_notebook
from moe_megatron.telemetry.exporter.access_token import read_token_file
from moe_megatron.telemetry.exporter.metrics_server import ServerOptions
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.history.location import history_address
from moe_megatron.telemetry.identity import run_id
from moe_megatron.telemetry.metric import ExpertDetail
from moe_megatron.telemetry.sinks.console import ConsoleSink
from moe_megatron.telemetry.sinks.delivery import Sink
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sample_files import SampleFiles

_NOTEBOOK_HEIGHT = 40
"""Lines that the live view may take below a cell."""
TOKEN_VARIABLE = "MOE_MEGATRON_METRICS_TOKEN"


def configured_sinks(
    config: RunConfig, run_dir: Path | None, health: SinkHealth | None = None
) -> list[Sink]:
    """The sinks that a configuration asks for, in the order in which they must be called.

    Raises:
        ConfigError: The token file cannot be read, or the history's address cannot be used.
    """
    exporter = make_exporter(config, run_dir, health)
    # On a resume the exporter reads the logs before they are rewound; it publishes after them.
    sinks: list[Sink] = [] if exporter is None else [exporter.earlier]
    sinks.append(MetricsLog())
    telemetry = config.telemetry
    routing = telemetry.enabled and bool(config.routed_layers)
    if routing and telemetry.routing_log:
        sinks.append(RoutingLog())
    address = history_address(telemetry.history_address, run_dir)
    if routing and telemetry.history and address is not None:
        sinks.append(HistorySink(address))
    if routing and telemetry.sample_interval and run_dir is not None:
        sinks.append(SampleFiles())
    if exporter is not None:
        sinks.append(exporter)
    if telemetry.console:
        sinks.append(_console_sink(telemetry.console_interval, telemetry.plain_console))
    return sinks


def _console_sink(interval: int, plain: bool | None) -> ConsoleSink:
    notebook = plain is None and in_notebook()
    # Bound now: Megatron's own output is redirected away from sys.stdout while it runs.
    console = Console(
        file=sys.stdout,
        # Not what FORCE_COLOR says, which notebooks and CI set for what their programs print.
        force_terminal=sys.stdout.isatty() if plain is None else not plain,
        force_jupyter=False,
        width=NOTEBOOK_WIDTH if notebook else None,
        height=_NOTEBOOK_HEIGHT if notebook else None,
    )
    return ConsoleSink(interval=interval, console=console, notebook=notebook)


def make_exporter(
    config: RunConfig, run_dir: Path | None, health: SinkHealth | None = None
) -> PrometheusSink | None:
    """The exporter that a configuration asks for, if any.

    Raises:
        ConfigError: The token file cannot be read, or holds no token.
    """
    telemetry = config.telemetry
    if telemetry.metrics_port is None:
        return None
    certificate, key = telemetry.metrics_tls_certificate, telemetry.metrics_tls_key
    discovery = telemetry.metrics_discovery_dir
    options = ExporterOptions(
        server=ServerOptions(
            host=telemetry.metrics_host,
            port=telemetry.metrics_port,
            token=_read_token(telemetry.metrics_token_file),
            certificate=None if certificate is None else Path(certificate),
            key=None if key is None else Path(key),
        ),
        detail=ExpertDetail[telemetry.metrics_expert_detail.upper()],
        max_series=telemetry.metrics_max_series,
        run_id=run_id(run_dir),
        cluster=telemetry.cluster,
        discovery_dir=None if discovery is None else Path(discovery),
    )
    # Bound now: Megatron's own output is redirected away from sys.stdout while it runs.
    stdout = sys.stdout
    return PrometheusSink(
        options, health=health, announce=lambda line: print(line, file=stdout, flush=True)
    )


def _read_token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    return read_token_file(file, "telemetry.metrics_token_file")

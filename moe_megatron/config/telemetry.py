"""What a run reports while it trains: the console, logs, history and the Prometheus exporter.

It does not know the metrics themselves (`moe_megatron.telemetry` names them).
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryConfig:
    """Which reports a run makes.

    Raises:
        ConfigError: If a value is out of range.
    """

    enabled: bool = True
    """Collect routing statistics at all."""

    console: bool = True
    """Show progress and expert load on the console of the first process."""

    console_interval: int = 10
    """Steps between lines on the console."""

    plain_console: bool | None = None
    """Print plain lines in place of live tables; null: where the output is not a terminal."""

    routing_log: bool = True
    """Write every routing snapshot to routing.jsonl in the run directory."""

    history: bool = True
    """Keep the counts of every step, layer and expert as a compressed Zarr group."""

    history_address: str | None = None
    """Folder, s3:// or gs:// prefix for histories, one a run; null: in the run directory."""

    metrics_port: int | None = None
    """Port of the Prometheus exporter of the first process; 0: a free one; null: none."""

    metrics_host: str = "127.0.0.1"
    """Address it listens on; the default can be reached from its own machine alone."""

    metrics_expert_detail: Literal["none", "histogram", "topk", "full"] = "histogram"
    """Series of single experts: none, their distribution, also the extremes, or every expert."""

    metrics_max_series: int = 5000
    """Most series it may export; a detail that needs more is lowered."""

    metrics_token_file: str | None = None
    """File with the bearer token that a scraper must send; null: the variable
    MOE_MEGATRON_METRICS_TOKEN, or no token."""

    metrics_tls_certificate: str | None = None
    """PEM file of the exporter's certificate; null: plain HTTP."""

    metrics_tls_key: str | None = None
    """PEM file of its private key."""

    metrics_discovery_dir: str | None = None
    """Folder for a second target file, which Prometheus may watch for all runs."""

    cluster: str = "local"
    """The `cluster` label of all series of the run."""

    peak_tflops: float | None = None
    """What one device can do, in 10^12 operations per second, for the MFU; null: known for some
    GPUs."""

    log_format: Literal["text", "json"] = "text"
    """Messages as text, or as JSON objects, one a line, that are also kept in logs/rankN.jsonl."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "console_interval", "metrics_max_series")
        checks.not_empty(self, "metrics_host", "cluster")
        checks.positive(self, "peak_tflops")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ConfigError(
                f"telemetry.metrics_port must be 0 (a free port) to 65535, not {self.metrics_port}."
            )
        if (self.metrics_tls_certificate is None) != (self.metrics_tls_key is None):
            raise ConfigError(
                "telemetry.metrics_tls_certificate and telemetry.metrics_tls_key belong together; "
                "give both, or neither for plain HTTP."
            )

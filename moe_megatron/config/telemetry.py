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
    """Collect routing statistics."""

    console: bool = True
    """Show progress and expert load on the console of the first process."""

    console_interval: int = 10
    """Steps between console lines."""

    plain_console: bool | None = None
    """Print plain lines in place of live tables; null: if the output is no terminal or notebook."""

    routing_log: bool = True
    """Write every routing snapshot to routing.jsonl in the run directory."""

    history: bool = True
    """Keep the token counts of every step, layer and expert in a compressed Zarr group."""

    history_address: str | None = None
    """Folder, s3:// or gs:// prefix for histories, one per run; null: the run directory."""

    sample_interval: int = 100
    """Steps between samples of which experts are chosen together, in a layer and from one MoE layer
    to the next, and of the balancing bias, in RUN/samples; 0: none."""

    sample_tokens: bool = False
    """Record in each sample the most frequent tokens of each expert, by id and count; ids say what
    text the model is trained on, which can be private."""

    metrics_port: int | None = None
    """Port of the Prometheus exporter of the first process; 0: any free port; null: no exporter."""

    metrics_host: str = "127.0.0.1"
    """Address that the exporter listens on; the default is reachable only from the same machine."""

    metrics_expert_detail: Literal["none", "histogram", "topk", "full"] = "histogram"
    """Per-expert series: none; a histogram; the histogram and the extremes; or every expert."""

    metrics_max_series: int = 5000
    """Largest number of series to export; metrics_expert_detail is lowered if it needs more."""

    metrics_token_file: str | None = None
    """File with the bearer token that a scraper must send; null: the environment variable
    MOE_MEGATRON_METRICS_TOKEN, or no token if that is not set."""

    metrics_tls_certificate: str | None = None
    """PEM file of the exporter's certificate; null: plain HTTP."""

    metrics_tls_key: str | None = None
    """PEM file of the certificate's private key."""

    metrics_discovery_dir: str | None = None
    """Folder for a second target file; Prometheus can watch one such folder for all runs."""

    cluster: str = "local"
    """Value of the `cluster` label of all series of the run."""

    peak_tflops: float | None = None
    """Peak throughput of one device for the MFU, in 10^12 operations per second; null: built-in
    values, for some GPUs."""

    log_format: Literal["text", "json"] = "text"
    """Format of messages: text, or one JSON object per line, also kept in logs/rankN.jsonl."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 0, "sample_interval")
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

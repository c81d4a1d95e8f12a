"""What a run reports while it trains: the console, and the log of routing decisions.

It does not know the metrics themselves (`moe_megatron.telemetry` names them).
"""

from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.convert import conform


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

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "console_interval")

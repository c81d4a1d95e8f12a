"""What a run does by itself when it is harmed: how often it is started again, and by which rules.

It does not know how processes are started (`platform.launch`), nor what happens in a step.
"""

from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.conform import conform


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryConfig:
    """What happens after a fault.

    Raises:
        ConfigError: If a value is out of range.
    """

    max_restarts: int = 3
    """How often `moe-megatron train` starts the processes again after a fault, from the newest
    checkpoint; a checkpoint newer than that of the attempt before starts the count anew."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 0, "max_restarts")

"""When checkpoints are written, and which one a run starts from.

It does not know formats or shards (`moe_megatron.checkpoint` and Megatron do).
"""

from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting, switch


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Writing and loading of checkpoints.

    Raises:
        ConfigError: If a value is out of range.
    """

    save_interval: int | None = setting(100, flag="save-interval")
    """Steps between checkpoints; null: write none."""

    load: str | None = setting(None, flag="load")
    """Folder of checkpoints to continue from; null: start with new weights."""

    async_save: bool = setting(False, flag="async-save")
    """Write in the background while training goes on."""

    fully_reshardable: bool = setting(True, flag="dist-ckpt-optim-fully-reshardable")
    """Write the optimizer so that it can be loaded under any other parallel sizes."""

    save_optimizer: bool = setting(True, flag=switch("no-save-optim", on=False, off=True))
    """Include the optimizer; without it a checkpoint is smaller and cannot continue exactly."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "save_interval")
        checks.not_empty(self, "load")

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

    fallback: bool = True
    """Go on from an older checkpoint where the newest is damaged; false: end with an error."""

    async_save: bool = setting(False, flag="async-save")
    """Write in the background while training goes on."""

    fully_reshardable: bool = setting(True, flag="dist-ckpt-optim-fully-reshardable")
    """Write the optimizer so that it can be loaded under any other parallel sizes."""

    save_optimizer: bool = setting(True, flag=switch("no-save-optim", on=False, off=True))
    """Include the optimizer; without it a checkpoint is smaller and cannot continue exactly."""

    keep_last: int | None = None
    """How many of the newest checkpoints to keep, at least; null with the two below: keep all."""

    keep_every: int | None = None
    """Keep also those whose step is a multiple of this."""

    keep_best: int | None = None
    """Keep also so many with the lowest validation loss, of those evaluated at their step."""

    patience_seconds: float = 600.0
    """For how long the last save of a run, and the checksums of any, wait for room on their disk;
    other saves wait for the next interval."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "save_interval", "keep_last", "keep_every", "keep_best")
        checks.at_least(self, 0, "patience_seconds")
        checks.not_empty(self, "load")

"""What a run does by itself when it is harmed: how often it is started again, and by which rules.

It does not know how processes are started (`platform.launch`), nor what happens in a step.
"""

from dataclasses import dataclass
from typing import Literal

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

    restart: Literal["elastic", "ft_launcher", "in_process"] = "elastic"
    """How ranks are looked after and started again: by torchrun; by ft_launcher, whose monitors
    kill a rank that hangs, also before the first step; or first within the same processes, which
    keep what they have imported. The last two need nvidia-resiliency-ext."""

    setup_seconds: float = 1800.0
    """Longest time from the start of a rank to its first step, for ft_launcher."""

    on_nonfinite: Literal["skip", "rollback", "stop"] = "skip"
    """What to do with a step whose gradients are NaN or infinite: make no update, go back to the
    newest checkpoint and leave out the data up to the step, or end the run."""

    repeat_nonfinite: bool = True
    """Compute such a step once more before anything else; a flipped bit does not happen twice."""

    on_spike: Literal["ignore", "skip", "rollback"] = "ignore"
    """What to do with a step whose loss stands out from those before."""

    spike_window: int = 100
    """Updates whose losses a loss is compared with."""

    spike_deviations: float = 10.0
    """Distance from their median that makes a spike, in standard deviations estimated from the
    median absolute deviation."""

    max_skips: int = 10
    """Most skipped steps of the last 1000; one more ends the run."""

    max_rollbacks: int = 3
    """Most rollbacks of a run; one more ends it."""

    expert_failure: Literal["stop", "mask"] = "stop"
    """What to do with an expert whose weights or gradients are not finite: treat the step like any
    other that is not finite, or take the expert out of routing and go on without it."""

    restore_experts: Literal["none", "restore", "reinitialize"] = "none"
    """What to do at the start with experts that are masked in the checkpoint: keep them masked,
    give them their weights of the newest checkpoint in which they were not masked, or the mean of
    the layer's living experts."""

    hang_seconds: float | None = None
    """Longest time without progress, ten times as long in checkpoints and evaluations; null: 60
    plus ten times the median of the last steps."""

    end_hangs: bool = True
    """End the processes of a run that hangs, so that the launcher can start them again."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 0, "max_restarts", "max_skips", "max_rollbacks")
        checks.at_least(self, 3, "spike_window")
        checks.positive(self, "spike_deviations", "hang_seconds", "setup_seconds")

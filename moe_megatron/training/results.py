"""What `MoETrainer` returns: plain values, independent of Megatron."""

import math
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.telemetry.values.profile import RoutingProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """Quality on held-out text."""

    loss: float
    """Mean cross-entropy of the next token, in nats."""
    tokens: int
    """Number of predicted tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """The result of a training run. Losses are known on rank 0 only."""

    steps: int
    losses: list[float | None]
    """Training loss of each step, in nats per token."""
    tokens: int
    """Number of tokens trained on."""
    seconds: float
    """Wall time of the run, including set-up."""
    validation_loss: float | None
    """Loss of the last evaluation; None without an evaluation dataset."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM stopped the run."""
    run_dir: Path
    checkpoint: Path | None
    """Megatron checkpoint of the last step; None if none was saved."""
    routing: RoutingProfile | None
    """Routing of the whole run; None for dense models."""

    @property
    def final_loss(self) -> float | None:
        """Training loss of the last step."""
        return self.losses[-1] if self.losses else None

    @property
    def perplexity(self) -> float | None:
        """exp(validation_loss)."""
        return None if self.validation_loss is None else math.exp(min(self.validation_loss, 700.0))

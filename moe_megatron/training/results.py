"""What `MoETrainer` returns: plain values, with nothing of Megatron in them."""

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
    """Predicted tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a training went. Losses are known on rank 0 only."""

    steps: int
    losses: list[float | None]
    """Training loss of each step, in nats per token."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Wall time of the run, set-up included."""
    validation_loss: float | None
    """The last one; None without an evaluation dataset."""
    interrupted: bool
    """Stopped by Ctrl-C or SIGTERM."""
    run_dir: Path
    checkpoint: Path | None
    """Megatron checkpoint of the last step; None where none was asked for."""
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

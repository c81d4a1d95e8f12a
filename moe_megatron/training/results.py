"""What `MoETrainer` returns: plain values, independent of Megatron."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from moe_megatron.drawing import Picture
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.viz.curves import Curve, draw_curves


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


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
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
    history: History = field(default_factory=History)
    """Every step and evaluation; `history.to_pandas()` is a DataFrame."""

    @property
    def final_loss(self) -> float | None:
        """Training loss of the last step."""
        return self.losses[-1] if self.losses else None

    @property
    def perplexity(self) -> float | None:
        """exp(validation_loss)."""
        return None if self.validation_loss is None else math.exp(min(self.validation_loss, 700.0))

    def plot(self, save_to: str | Path | None = None) -> Picture:
        """Draw the losses, and how imbalanced the routers were; a notebook shows the picture.

        Args:
            save_to: File to write it to, such as "run.png"; None writes none.

        Raises:
            DataError: No step was made, or the file cannot be written.
        """
        return draw_curves([curve_of(self.run_dir.name, self.history)], save_to)

    def __repr__(self) -> str:
        loss = None if self.final_loss is None else round(self.final_loss, 4)
        shown = f"steps={self.steps}, final_loss={loss}"
        if self.validation_loss is not None:
            shown += f", validation_loss={round(self.validation_loss, 4)}"
        return f"TrainingResult({shown}, run_dir='{self.run_dir}')"


def curve_of(label: str, history: History) -> Curve:
    """What is drawn of a run."""
    measured = history.imbalances
    return Curve(
        label=label,
        steps=[record.step for record in history.steps],
        losses=history.losses,
        evaluations=[(it.step, it.loss) for it in history.evaluations if it.split == "validation"],
        imbalances=[measured.get(it.step, math.nan) for it in history.steps] if measured else [],
    )

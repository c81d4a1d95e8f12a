"""The policy for spikes of the loss.

    spike    loss > median + k * 1.4826 * median(|loss_i - median|)     over the last N updates

1.4826 times the median absolute deviation estimates the standard deviation of normal noise, and
unlike that is not moved by the spikes themselves (Leys et al., 2013,
doi:10.1016/j.jesp.2013.03.013). Rolling back and leaving out the data is what PaLM did by hand
(arXiv:2204.02311, section 5.1). It does not know gradients.
"""

import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any, Literal

from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.mcore import world
from moe_megatron.mcore.recovery.policy import Action, Answer, Policy, Step
from moe_megatron.mcore.recovery.recent_losses import read_losses, write_losses

_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class LossSpikes(Policy):
    """Skips or rolls back steps whose loss stands out from those before.

    Args:
        response: What to do about a spike.
        window: Number N of updates to compare with; before these are made nothing is a spike.
        deviations: k, the distance in estimated standard deviations.
        checkpoints: Folder in which the run saves; None if it saves nothing.
        loaded: The checkpoint that the run loads; None if it loads none.
    """

    needs_loss = True

    def __init__(
        self,
        response: Literal["skip", "rollback"],
        *,
        window: int,
        deviations: float,
        checkpoints: Path | None = None,
        loaded: Path | None = None,
    ) -> None:
        self._action = Action.SKIP if response == "skip" else Action.ROLL_BACK
        self._losses: deque[float] = deque(maxlen=window)
        self._deviations = deviations
        self._checkpoints, self._loaded = checkpoints, loaded

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Go on with the losses before the checkpoint; a run from step 0 has none."""
        self._begin_after(self._loaded if start_step else None)

    def judge(self, step: Step) -> Answer | None:
        """Answer if the loss is a spike; a loss that is not finite is not for this policy."""
        if step.loss is None or not math.isfinite(step.loss):
            return None
        limit = self._limit()
        if limit is None or step.loss <= limit:
            self._losses.append(step.loss)
            return None
        reason = f"loss {step.loss:.4f} is above {limit:.4f}, {self._deviations:g} deviations"
        return Answer(action=self._action, reason=reason)

    def on_rolled_back(self, checkpoint: Path, step: int) -> None:
        """Compare with the losses before the checkpoint."""
        self._begin_after(checkpoint)

    def on_checkpoint_end(self, step: int) -> None:
        """Keep the losses beside the checkpoint."""
        if self._checkpoints is not None and world.rank() == 0:
            write_losses(iteration_dir(self._checkpoints, step), self._losses)

    def _begin_after(self, checkpoint: Path | None) -> None:
        self._losses.clear()
        self._losses.extend(() if checkpoint is None else read_losses(checkpoint))

    def _limit(self) -> float | None:
        if len(self._losses) < (self._losses.maxlen or 0):
            return None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        # Losses that do not vary at all say nothing about how much they may.
        return median + self._deviations * _NORMAL * deviation if deviation else None

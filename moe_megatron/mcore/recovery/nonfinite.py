"""The policy for gradients that are not finite: NaN or infinite.

    first time      the step is computed again: a flipped bit does not happen twice
    bad weights     the steps since the newest checkpoint are made again: no skipped step mends them
    still bad       skip, roll back, or stop, as configured

The norm of the whole gradient, which Megatron reduces over all ranks anyway, is the signal, so a
healthy step costs nothing. It does not know what made the gradients bad.
"""

import math
from typing import Any, Literal

from megatron.training import get_args

from moe_megatron.errors import FaultError, RecoveryError
from moe_megatron.mcore.recovery.findings import (
    FirstNonFinite,
    nonfinite_result,
    nonfinite_weights,
)
from moe_megatron.mcore.recovery.policy import Action, Answer, Policy, Step
from moe_megatron.mcore.recovery.rollback import BackTo


class NonFinite(Policy):
    """Computes a step with non-finite gradients again, and then skips, rolls back or stops.

    Args:
        response: What to do if the second computation is no better.
        repeats: Whether to compute the step a second time at all.
    """

    def __init__(
        self, response: Literal["skip", "rollback", "stop"], *, repeats: bool = True
    ) -> None:
        self._response = response
        self._repeats = repeats
        self._replayed: set[int] = set()
        self._model: list[Any] = []
        self._watch: FirstNonFinite | None = None

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Keep the model, to find in it what is not finite."""
        self._model = model

    def on_checkpoint_start(self, step: int) -> None:
        """Go back instead of saving weights that are not finite."""
        if (found := nonfinite_weights(self._model)) is None:
            return
        reason = f"first not finite, before a checkpoint: {found}"
        if step >= get_args().train_iters:
            raise FaultError(f"step {step} was the last, but is not saved ({reason}).")
        raise BackTo(step, Answer(action=Action.REPLAY, reason=reason))

    def judge(self, step: Step) -> Answer | None:
        """Answer if the norm of the gradient is not finite."""
        watch, self._watch = self._watch, None
        found = None if watch is None else watch.remove()
        if math.isfinite(step.grad_norm):
            return None
        if self._repeats and step.repeats == 0:
            self._watch = FirstNonFinite(self._model)
            return Answer(action=Action.REPEAT, reason="the gradients are not finite")
        weights = nonfinite_weights(self._model)
        where = weights or nonfinite_result(self._model, found)
        reason = f"loss {step.loss}, gradient norm {step.grad_norm}, first not finite: {where}"
        if self._response == "stop":
            raise RecoveryError(
                f"step {step.number} has no finite gradients ({reason}). Lower "
                "training.learning_rate, look at its data, or let the run go on by itself with "
                "recovery.on_nonfinite: skip or rollback."
            )
        if weights and step.number not in self._replayed:
            self._replayed.add(step.number)
            return Answer(action=Action.REPLAY, reason=reason)
        action = Action.SKIP if self._response == "skip" else Action.ROLL_BACK
        return Answer(action=action, reason=reason)

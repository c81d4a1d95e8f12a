"""What a recovery policy is: it sees a step before its update is made, and answers.

A policy is a callback of the loop, too: it may watch routing, checkpoints and evaluations there.
It does not know how an answer is carried out (`guard.py`), nor who else is asked.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from moe_megatron.mcore.loop.callbacks import Callback


class Action(Enum):
    """What a policy can ask for."""

    REPEAT = "repeat"
    """Compute the step again, with the same data, as if it had not been computed."""
    SKIP = "skip"
    """Make no update: nothing of the step remains but that its data is used up."""
    ROLL_BACK = "roll back"
    """Go back to the newest checkpoint, and leave out the data from there to this step."""
    REPLAY = "replay"
    """Go back to the newest checkpoint, and make the steps from there again, as they were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step whose gradients are complete, before its update; the same on every rank."""

    number: int
    """Counted from 1, as in metrics.jsonl."""
    repeats: int
    """How often this step has been computed before."""
    loss: float | None
    """Loss of the global batch, in nats per token; known where a policy asks for it
    (`Policy.needs_loss`) or the gradients are not finite."""
    grad_norm: float
    """Norm of the whole gradient before clipping; not finite if any gradient is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What to do about a step, and why."""

    action: Action
    reason: str
    """Words for the journal and the console, such as "the gradients are not finite"."""


class Policy(Callback):
    """Judges steps.

    What `judge` sees is the same on every rank, and its answer must be, too. One that rests on
    something only this rank knows must agree with the other ranks first.
    """

    needs_loss = False
    """Whether `judge` reads `Step.loss`; it costs one small reduction each step."""

    def judge(self, step: Step) -> Answer | None:
        """Answer before the update of a step; None lets it be made.

        Raises:
            RecoveryError: Nothing can be done any more; the run ends with its message.
        """
        return None

    def on_optimizer(self, optimizer: Any) -> None:
        """The optimizer of the run, Megatron's; called once, after `on_train_start`."""

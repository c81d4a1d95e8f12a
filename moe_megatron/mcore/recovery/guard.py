"""Asks the recovery policies about every step before its update, and carries out their answers.

Megatron's `train_step` computes gradients, their norm and then the update, in one call; the guard
stands between norm and update, and around the call. It counts: a run that skips or rolls back too
often ends with the reason. It does not know what the policies look for.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.training import training as loop

from moe_megatron.config.checkpoint_files import tracked_step
from moe_megatron.errors import FaultError, RecoveryError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.stopping import Left, Stopping
from moe_megatron.mcore.recovery.policy import Action, Answer, Policy, Step
from moe_megatron.mcore.recovery.rollback import BackTo, RollBack, dummy_train_step
from moe_megatron.mcore.recovery.undo import StepUndo
from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.uptime.steps import lost_after

logger = logging.getLogger(__name__)

SKIP_WINDOW = 1000
"""Steps over which skipped ones are counted."""
_LOSS = "lm loss"
_BACKWARD = (Action.ROLL_BACK, Action.REPLAY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How much a run may do by itself."""

    skips: int
    """Most skipped steps of the last `SKIP_WINDOW`."""
    rollbacks: int
    """Most rollbacks of a run, all its attempts together."""


class StepGuard:
    """Stands between gradients and update of every step.

    Args:
        policies: Asked in order; the first that answers decides.
        bounds: How often answers are carried out.
        callbacks: Told of steps that do not count.
        rollback: Carries out rollbacks.
        stopping: Ends a step that takes long when the run is asked to stop.
        run_dir: Folder of the run, whose journal gets what happens; None writes nothing.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        bounds: Bounds,
        *,
        callbacks: Sequence[Callback],
        rollback: RollBack,
        stopping: Stopping,
        run_dir: Path | None,
    ) -> None:
        self._policies = tuple(policies)
        self._bounds = bounds
        self._callbacks = tuple(callbacks)
        self._rollback, self._stopping = rollback, stopping
        self._journal = run_dir if world.rank() == 0 else None
        self._needs_loss = any(policy.needs_loss for policy in policies)
        self._skips: deque[int] = deque()
        self._reports: list[dict[str, torch.Tensor]] = []
        self._grad_norm: float | None = None
        self._start = self._number = self._repeats = 0
        self._answer: Answer | None = None
        self._undo = StepUndo([])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Guard Megatron's loop for as long as the context is open."""
        with ExitStack() as stack:
            replaced = {
                "train": self._train(loop.train),
                "train_step": self._train_step(loop.train_step),
                "dummy_train_step": dummy_train_step,
            }
            for name, function in replaced.items():
                stack.callback(setattr, loop, name, getattr(loop, name))
                setattr(loop, name, function)
            stack.enter_context(self._rollback.watching_data())
            yield

    def _train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(forward: Any, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self._undo = StepUndo(model)
            for policy in self._policies:
                policy.on_optimizer(optimizer)
            with self._watching(optimizer):
                while True:
                    self._start = loop.get_args().iteration
                    try:
                        return original(forward, model, optimizer, *args, **kwargs)
                    except BackTo as request:
                        self._go_back(request, model, optimizer, args)

        return train

    @contextmanager
    def _watching(self, optimizer: Any) -> Iterator[None]:
        """See the optimizer's gradient norm, and decide about its update."""
        get_norm, update = optimizer.get_grad_norm, optimizer.step_with_ready_grads

        def get_grad_norm() -> Any:
            self._grad_norm = get_norm()
            return self._grad_norm

        def step_with_ready_grads() -> bool:
            self._answer = self._judge()
            return self._answer is None and bool(update())

        optimizer.get_grad_norm = get_grad_norm
        optimizer.step_with_ready_grads = step_with_ready_grads
        try:
            yield
        finally:
            del optimizer.get_grad_norm, optimizer.step_with_ready_grads

    def _judge(self) -> Answer | None:
        grad_norm = 0.0 if self._grad_norm is None else float(self._grad_norm)
        finite = grad_norm - grad_norm == 0.0
        step = Step(
            number=self._number,
            repeats=self._repeats,
            loss=self._loss() if self._needs_loss or not finite else None,
            grad_norm=grad_norm,
        )
        for policy in self._policies:
            if (answer := policy.judge(step)) is not None:
                return self._bounded(step, answer)
        return None

    def _bounded(self, step: Step, answer: Answer) -> Answer:
        """The answer as it can be carried out.

        Raises:
            RecoveryError: It was given too often.
        """
        action, reason = answer.action, answer.reason
        if action is Action.REPEAT and not self._undo.can_repeat:
            action = Action.SKIP
        if action in _BACKWARD:
            problem = self._rollback.find_problem(step.number)
            if problem is not None and action is Action.REPLAY:
                raise FaultError(
                    f"the loss stopped being finite at step {step.number}, which cannot be mended "
                    f"({reason}): {problem}. Lower training.learning_rate, or start from weights "
                    "that are finite."
                )
            if problem is not None:
                action, reason = Action.SKIP, f"{reason}; {problem}"
        if action is Action.SKIP:
            self._count_skip(step.number, reason)
        return Answer(action=action, reason=reason)

    def _count_skip(self, number: int, reason: str) -> None:
        self._skips.append(number)
        while self._skips[0] <= number - SKIP_WINDOW:
            self._skips.popleft()
        if len(self._skips) > self._bounds.skips:
            raise RecoveryError(
                f"step {number} would be skipped number {len(self._skips)} of the last "
                f"{SKIP_WINDOW} steps, more than the {self._bounds.skips} of recovery.max_skips: "
                f"{reason}. Resume from a checkpoint before the first of them with a lower "
                "training.learning_rate, or set recovery.on_nonfinite to rollback."
            )

    def _loss(self) -> float | None:
        """Loss of the global batch, from what the last pipeline stage reported; on every rank."""
        total = torch.zeros(2, dtype=torch.float64, device=world.device())
        for report in self._reports:
            if _LOSS in report:
                total += report[_LOSS]
        dist.all_reduce(total)
        loss, tokens = total.tolist()
        return loss / tokens if tokens else None

    def _train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(
            forward: Any,
            data: Any,
            model: Any,
            optimizer: Any,
            scheduler: Any,
            config: Any,
            forward_backward: Callable[..., Any],
            *args: Any,
            iteration: int,
            **kwargs: Any,
        ) -> Any:
            def keep_reports(*inner: Any, **named: Any) -> Any:
                with self._stopping.may_be_left():
                    self._reports = forward_backward(*inner, **named)
                return self._reports

            self._number, self._repeats = iteration + 1, 0
            self._undo.remember()
            while True:
                self._answer = self._grad_norm = None
                words = (forward, data, model, optimizer, scheduler, config, keep_reports)
                try:
                    result = original(*words, *args, iteration=iteration, **kwargs)
                except Left:
                    return self._leave()
                if self._is_over(data):
                    return result
                self._repeats += 1

        return train_step

    def _leave(self) -> Any:
        """Undo the step; returns what lets Megatron save the steps before it, and end the run."""
        self._undo.forget()
        for callback in self._callbacks:
            callback.on_step_discarded(self._number)
        steps, folder = self._number - 1, loop.get_args().save
        logger.warning(
            "step %d takes long and is left: the run ends after step %d", self._number, steps
        )
        loop.maybe_finalize_async_save(blocking=True)
        saves = bool(folder) and steps > self._start and tracked_step(Path(folder)) != steps
        return {}, True, saves, True, 0, None, None, 0

    def _is_over(self, data: Any) -> bool:
        """Carry out the answer about a step; returns whether the step is over."""
        answer = self._answer
        if answer is None:
            return True
        self._undo.restore()
        if answer.action is not Action.SKIP:
            for callback in self._callbacks:
                callback.on_step_discarded(self._number)
        if answer.action is Action.REPEAT:
            self._tell("repeated", answer)
            self._undo.rewind(data)
            return False
        if answer.action in _BACKWARD:
            raise BackTo(self._number, answer)
        self._tell("skipped", answer)
        note(self._journal, "skipped", step=self._number, reason=answer.reason)
        return True

    def _go_back(self, request: BackTo, model: Any, optimizer: Any, rest: tuple[Any, ...]) -> None:
        if (problem := self._rollback.find_problem(request.step)) is not None:
            raise FaultError(f"step {request.step}: {request.answer.reason}; {problem}.")
        if self._rollback.number >= self._bounds.rollbacks:
            raise RecoveryError(
                f"step {request.step} asks for one more rollback than the "
                f"{self._bounds.rollbacks} of recovery.max_rollbacks: {request.answer.reason}. "
                "Lower training.learning_rate or look at the data, then resume; a larger "
                "recovery.max_rollbacks lets the run go on."
            )
        for callback in self._callbacks:
            callback.on_rollback_start()
        started = time.perf_counter()
        checkpoint, step = self._rollback.go_back(request, model, optimizer, rest)
        self._tell_of_rollback(request, step, time.perf_counter() - started)
        for callback in self._callbacks:
            callback.on_rolled_back(checkpoint, step)
        self._skips.clear()

    def _tell_of_rollback(self, request: BackTo, step: int, seconds: float) -> None:
        left_out = request.answer.action is Action.ROLL_BACK
        data = "without" if left_out else "with"
        self._tell(f"rolled back to step {step}, {data} the data up to it", request.answer)
        # Before the record is rewound, which holds what is lost.
        lost = None if self._journal is None else lost_after(self._journal, step)
        note(
            self._journal,
            "rolled_back",
            step=request.step,
            to_step=step,
            left_out=left_out,
            reason=request.answer.reason,
            seconds=round(seconds, 3),
            lost_steps=0 if lost is None else lost.steps,
            lost_seconds=0.0 if lost is None else round(lost.seconds, 3),
        )

    def _tell(self, done: str, answer: Answer) -> None:
        if world.rank() == 0:
            logger.warning("step %d is %s: %s", self._number, done, answer.reason)

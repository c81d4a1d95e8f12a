"""Calls callbacks from Megatron's training loop, which has none in 0.19.

`callbacks_installed` wraps a few functions of `megatron.training.training` for the duration of a
run and restores the originals afterwards; `saving.Saves` does the same around saves. With a
Megatron that has callbacks of its own, this file can go.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from megatron.training import training as loop

from moe_megatron.mcore.evaluation.evaluator import TaskEvaluator
from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd, TasksEvaluated
from moe_megatron.mcore.measure.phases import PhaseClock


@contextmanager
def callbacks_installed(
    callbacks: Sequence[Callback],
    clock: PhaseClock | None = None,
    evaluator: TaskEvaluator | None = None,
) -> Iterator[None]:
    """Call `callbacks`, in order, from Megatron's loop for as long as the context is open.

    Args:
        callbacks: Called on every rank.
        clock: Measures the phases of the loop; others may use it to measure further ones.
        evaluator: Evaluates tasks in place of Megatron's validation data.
    """
    wrappers = _Wrappers(callbacks, clock or PhaseClock(), evaluator)
    with ExitStack() as stack:
        for name in (
            "load_checkpoint",
            "train",
            "train_step",
            "training_log",
            "evaluate",
            "evaluate_and_print_results",
        ):
            original = getattr(loop, name)
            setattr(loop, name, getattr(wrappers, name)(original))
            stack.callback(setattr, loop, name, original)
        yield


class _Wrappers:
    """A wrapper for each wrapped function, and the state they keep between calls."""

    def __init__(
        self, callbacks: Sequence[Callback], clock: PhaseClock, evaluator: TaskEvaluator | None
    ) -> None:
        self._callbacks = tuple(callbacks)
        self._evaluator = evaluator
        self._evaluate = loop.evaluate
        self._clock = clock
        self._step_started = 0.0
        self._evaluation = (0, "validation")

    def load_checkpoint(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            step, operations = original(*args, **kwargs)
            for callback in self._callbacks:
                callback.on_load_end(step, time.perf_counter() - started)
            return step, operations

        return load_checkpoint

    def train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(forward_step: Any, model: list[Any], *args: Any, **kwargs: Any) -> Any:
            start_step = loop.get_args().iteration
            for callback in self._callbacks:
                callback.on_train_start(model, start_step)
            if self._evaluator is not None:
                self._of_tasks(start_step, self._evaluator.before_training, forward_step, model)
            self._clock.lap()
            try:
                result = original(forward_step, model, *args, **kwargs)
            except SystemExit as exit_request:  # how Megatron ends a run after a signal
                if not exit_request.code:
                    self._end(model)
                raise
            self._end(model)
            return result

        return train

    def _end(self, model: list[Any]) -> None:
        for callback in self._callbacks:
            callback.on_train_end(model)

    def train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(
            forward_step: Any,
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
            self._step_started = time.perf_counter()
            for callback in self._callbacks:
                callback.on_step_start(iteration + 1)
            with self._clock.measure("optimizer"):  # the rest of the step, without inner phases
                return original(
                    forward_step,
                    data,
                    model,
                    optimizer,
                    scheduler,
                    config,
                    self._measured("forward_backward", forward_backward),
                    *args,
                    iteration=iteration,
                    **kwargs,
                )

        return train_step

    def _measured(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self._clock.measure(phase):
                return function(*args, **kwargs)

        return measured

    def training_log(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def training_log(
            losses: dict[str, Any],
            total_losses: dict[str, Any],
            learning_rate: float | None,
            step: int,
            loss_scale: float,
            report_memory: bool,
            skipped: int,
            grad_norm: float | None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            event = StepEnd(
                step=step,
                losses=losses,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                skipped=bool(skipped),
                seconds=time.perf_counter() - self._step_started,
                phase_seconds=self._clock.lap(),
            )
            with self._clock.measure("telemetry"):
                for callback in self._callbacks:
                    callback.on_step_end(event)
            return original(
                losses,
                total_losses,
                learning_rate,
                step,
                loss_scale,
                report_memory,
                skipped,
                grad_norm,
                *args,
                **kwargs,
            )

        return training_log

    def evaluate_and_print_results(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate_and_print_results(
            prefix: str, forward_step: Any, data: Any, model: Any, step: int, *args: Any, **kw: Any
        ) -> Any:
            self._evaluation = (step, "test" if "test set" in prefix else "validation")
            started = time.perf_counter()
            result = None
            with self._clock.measure("evaluation"):
                if self._evaluator is None or self._evaluation[1] == "test":
                    result = original(prefix, forward_step, data, model, step, *args, **kw)
                else:
                    self._of_tasks(step, self._evaluator.evaluate, forward_step, model)
            for callback in self._callbacks:
                callback.on_evaluations_end(step, time.perf_counter() - started)
            return result

        return evaluate_and_print_results

    def _of_tasks(self, step: int, evaluate: Any, forward_step: Any, model: Any) -> None:
        """Evaluate tasks, and tell of it."""
        if scores := evaluate(self._evaluate, forward_step, model, step):
            for callback in self._callbacks:
                callback.on_tasks_evaluated(TasksEvaluated(step=step, scores=scores))

    def evaluate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            losses, collected, out_of_time = original(*args, **kwargs)
            if not out_of_time:
                step, split = self._evaluation
                event = EvaluationEnd(step=step, split=split, losses=losses)
                for callback in self._callbacks:
                    callback.on_evaluation_end(event)
            return losses, collected, out_of_time

        return evaluate

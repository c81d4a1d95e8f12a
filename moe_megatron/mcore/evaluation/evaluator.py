"""Evaluates each task of a run by itself, and says when a run has had enough.

Megatron's `evaluate` computes the micro-batches, under every layout; what is evaluated is ours. All
ranks get the same scores, so they agree on the end of a training.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import get_model_config
from megatron.training import get_args, training

from moe_megatron.config import RunConfig
from moe_megatron.data.held_out import HeldOut
from moe_megatron.mcore.evaluation.answers import Answers
from moe_megatron.mcore.evaluation.drift import RoutingDrift
from moe_megatron.mcore.evaluation.earlier import earlier_evaluations
from moe_megatron.mcore.evaluation.held_out import HeldOutRows
from moe_megatron.mcore.evaluation.judge import Judge
from moe_megatron.telemetry.values.task_scores import TaskScore

Evaluate = Callable[..., Any]


class TaskEvaluator:
    """What is evaluated in a run, in place of Megatron's blend of held-out data.

    Args:
        config: The run.
        data: What is held out, of each task and of the base domain.
        say: Called on rank 0 with why a training ends.
        metrics: The file with the run's evaluations before a resume; None: there is none.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Sequence[HeldOut],
        say: Callable[[str], None],
        metrics: Path | None = None,
    ) -> None:
        self._metrics = metrics
        self._config, self._data, self._say = config, tuple(data), say
        self._rows: list[HeldOutRows] | None = None
        self._answers = Answers()
        self._drift = RoutingDrift(config.routed_layers)
        self._judge = Judge(config.evaluation)
        self._done: int | None = None

    def before_training(
        self, evaluate: Evaluate, forward: Any, model: list[Any], step: int
    ) -> tuple[TaskScore, ...]:
        """Evaluate what the training starts from; after a resume, () and what it was judged by."""
        args = get_args()
        if step:
            self._judge = Judge(self._config.evaluation)
            for it in earlier_evaluations(self._metrics, step, self._say):
                self._judge.see(it.step, it.tasks)
        if step or not args.do_valid:
            return ()
        hooked = training.should_disable_forward_pre_hook(args)
        if hooked:
            training.disable_forward_pre_hook(model, param_sync=False)
        scores = self.evaluate(evaluate, forward, model, step)
        if hooked:
            training.enable_forward_pre_hook(model)
        return scores

    def evaluate(
        self, evaluate: Evaluate, forward: Any, model: list[Any], step: int
    ) -> tuple[TaskScore, ...]:
        """Evaluate all tasks; every rank must call it.

        Args:
            evaluate: Megatron's function.
            forward: Its forward step.
            model: The chunks of this rank.
            step: Steps made so far.

        Returns:
            The scores, on every rank; () if that was done already, or was interrupted.
        """
        if step == self._done:
            return ()
        if self._rows is None:
            shares, most = self._config.data.split_shares, self._config.training.eval_steps
            self._rows = [HeldOutRows(it, shares, most) for it in self._data]
        consumed = get_args().consumed_valid_samples
        scores = []
        for rows in self._rows:
            score = self._of_task(rows, evaluate, forward, model)
            if score is None:
                return ()
            scores.append(score)
        get_args().consumed_valid_samples = consumed
        self._done = step
        if (reason := self._judge.has_had_enough(step, scores)) is not None:
            get_args().train_iters = step  # Megatron's loop ends, saves and cleans up
            if dist.get_rank() == 0:
                self._say(reason)
        return tuple(scores)

    def _of_task(
        self, rows: HeldOutRows, evaluate: Evaluate, forward: Any, model: list[Any]
    ) -> TaskScore | None:
        seen: dict[int, torch.Tensor] = {}
        data: Any = [rows.micro_batches() for _ in model]
        with self._drift.watched(model, seen):
            losses, _, out_of_time = evaluate(
                partial(forward, answers=self._answers),
                data if len(model) > 1 else data[0],
                model,
                None,
                get_model_config(model[0]),
                False,
                None,
                eval_iters=rows.batches,
            )
        if out_of_time:
            return None
        loss, accuracy = _on_all_ranks([losses.get("lm loss"), losses.get("accuracy")])
        assert loss is not None, "the last stage reports a loss"
        return TaskScore(
            name=rows.name,
            tokens=rows.tokens,
            loss=loss,
            accuracy=accuracy,
            kept=self._drift.kept(rows.name, seen),
        )


def _on_all_ranks(values: Sequence[torch.Tensor | None]) -> list[float | None]:
    """The values of the ranks that have them, which are equal there, on every rank."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    sums = torch.zeros(len(values), 2, dtype=torch.float64, device=device)
    for place, value in enumerate(values):
        if value is not None:
            sums[place, 0], sums[place, 1] = value.detach().reshape(()), 1.0
    dist.all_reduce(sums)
    return [total / count if count else None for total, count in sums.tolist()]

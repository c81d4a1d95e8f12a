"""When a training has had enough: nothing gets better, or too much is forgotten.

It sees the scores of each evaluation, in order, those before a resume among them, and knows no
model.
"""

from collections.abc import Sequence

from moe_megatron.config.data import BASE
from moe_megatron.config.evaluation import EvaluationConfig
from moe_megatron.telemetry.values.task_scores import TaskScore, value_of


class Judge:
    """Looks at the evaluations of one run.

    Args:
        config: By what it judges.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config
        self._best: tuple[float, int] | None = None
        self._waited = 0
        self._base: float | None = None

    def see(self, step: int, scores: Sequence[TaskScore]) -> None:
        """Take note of an evaluation; nothing ends by it."""
        metric = self._config.metric
        value = value_of(scores, metric.kind, metric.task)
        if value is not None:
            sign = -1.0 if metric.more_is_better else 1.0
            # A value that is no number is no better one.
            if self._best is None or sign * value < sign * self._best[0]:
                self._best, self._waited = (value, step), 0
            else:
                self._waited += 1
        if self._base is None:
            self._base = value_of(scores, "loss", BASE)

    def has_had_enough(self, step: int, scores: Sequence[TaskScore]) -> str | None:
        """Why the training ends after this evaluation, as one line; None: it goes on."""
        self.see(step, scores)
        metric = self._config.metric
        if self._best and self._config.patience and self._waited >= self._config.patience:
            best, at = self._best
            return (
                f"ending after step {step}: {metric} has not been better than {best:.4g} (step "
                f"{at}) for {self._waited} evaluations (evaluation.patience)"
            )
        base = value_of(scores, "loss", BASE)
        if base is None or self._base is None or self._config.max_forgetting is None:
            return None
        if not base - self._base > self._config.max_forgetting:
            return None
        return (
            f"ending after step {step}: the loss of the base domain has risen from "
            f"{self._base:.4g} to {base:.4g}, by more than {self._config.max_forgetting:g} "
            "(evaluation.max_forgetting)"
        )

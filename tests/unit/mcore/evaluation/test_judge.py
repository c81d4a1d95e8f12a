"""When a training has had enough."""

import math

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.evaluation import EvaluationConfig, Metric
from moe_megatron.errors import ConfigError
from moe_megatron.mcore.evaluation.judge import Judge
from moe_megatron.telemetry.values.task_scores import TaskScore, value_of


def scores(first: float, second: float = 1.0, base: float = 2.0) -> list[TaskScore]:
    """Losses of two tasks, of which the first has three times the tokens, and of the base."""
    return [
        TaskScore(name="first", tokens=30, loss=first, accuracy=0.5),
        TaskScore(name="second", tokens=10, loss=second, accuracy=0.1),
        TaskScore(name="base", tokens=70, loss=base, accuracy=0.9),
    ]


def test_a_value_of_all_tasks_weighs_them_by_their_tokens_and_leaves_out_the_base() -> None:
    assert value_of(scores(2.0), "loss") == pytest.approx(1.75)
    assert value_of(scores(2.0), "perplexity") == pytest.approx(math.exp(1.75))
    assert value_of(scores(2.0), "accuracy") == pytest.approx(0.4)
    assert value_of(scores(2.0), "accuracy", "second") == 0.1
    assert value_of(scores(2.0), "loss", "base") == 2.0
    assert value_of([], "loss") is None
    assert value_of([TaskScore(name="a", tokens=1, loss=1.0)], "accuracy") is None


def endings(config: EvaluationConfig, losses: list[float], base: list[float]) -> list[str | None]:
    judge = Judge(config)
    pairs = enumerate(zip(losses, base, strict=True))
    return [judge.has_had_enough(step, scores(one, base=other)) for step, (one, other) in pairs]


def test_it_waits_as_many_evaluations_as_it_has_patience() -> None:
    config = EvaluationConfig(best="loss/first", patience=2)
    found = endings(config, [3, 2, 2.5, 1.9, 1.9, math.nan], [2] * 6)
    assert found[:5] == [None] * 5
    assert found[5] == (
        "ending after step 5: loss/first has not been better than 1.9 (step 3) for 2 evaluations "
        "(evaluation.patience)"
    )


def test_more_accuracy_is_better() -> None:
    assert Metric.read("accuracy/first").more_is_better
    judge = Judge(EvaluationConfig(best="accuracy", patience=1))
    rising = [TaskScore(name="a", tokens=1, loss=1.0, accuracy=it / 4) for it in (1, 2, 2)]
    assert [judge.has_had_enough(step, [it]) is None for step, it in enumerate(rising)] == [
        True, True, False,
    ]  # fmt: skip


def test_it_ends_where_too_much_is_forgotten() -> None:
    config = EvaluationConfig(base=("books",), max_forgetting=0.25)
    found = endings(config, [3, 2, 1], [2, 2.25, 2.5])
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert "has risen from 2 to 2.5, by more than 0.25" in found[2]


def test_what_was_seen_before_counts_and_ends_nothing() -> None:
    judge = Judge(EvaluationConfig(best="loss/first", patience=2, base=("it",), max_forgetting=0.2))
    for step, loss in enumerate([2.0, 2.5, 2.5]):
        judge.see(step, scores(loss, base=2.0))
    reason = judge.has_had_enough(3, scores(2.5))
    assert reason is not None
    assert "better than 2 (step 0) for 3 evaluations" in reason
    reason = judge.has_had_enough(4, scores(1.0, base=2.3))
    assert reason is not None
    assert "has risen from 2 to 2.3" in reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best": "losses"}, "evaluation.best: 'losses' is no value of an evaluation. Did you me"),
        ({"best": "loss/"}, "such a value of one task, as in loss/code"),
        ({"patience": 0}, "evaluation.patience must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.max_forgetting": 0.1}, "needs data of the base domain; give it in eval"),
        ({"evaluation.best": "loss/cod"}, "no task 'cod'. Did you mean 'code'"),
        ({"evaluation.best": "loss/base"}, "no task 'base'. Tasks are code"),
        ({"evaluation.patience": 1, "training.eval_interval": None}, "need evaluations, which tr"),
    ],
)
def test_what_a_run_is_judged_by_must_be_evaluated(
    changes: dict[str, object], message: str
) -> None:
    base = {"data.tasks": ("code",), "training.eval_interval": 2}
    with pytest.raises(ConfigError, match=message):
        apply_overrides(load_config("test_tiny"), {**base, **changes}).validate()

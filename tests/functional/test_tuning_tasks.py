"""`FineTuner.train(tasks=...)`: several tasks from a few lines of Python."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_megatron import FineTuner, MoEModel
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.training.mixture import data_given

TEXTS = {"code": "def return if else for in", "prose": "the a is it was then", "old": "we did so"}


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    world.leave()


def texts(name: str) -> list[str]:
    drawn = random.Random(name)
    return [" ".join(drawn.choices(TEXTS[name].split(), k=30)) for _ in range(30)]


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_tasks_are_trained_and_told_apart(tmp_path: Path) -> None:
    model = MoEModel(hidden_size=32, num_experts=4, num_layers=2, vocab_size=512)
    tuner = FineTuner(model, run_dir=tmp_path / "run")
    result = tuner.train(
        tasks={"code": texts("code"), "prose": texts("prose")},
        weights={"code": 1, "prose": 3},
        base_dataset=texts("old"),
        learning_rate=1e-2,
        sequence_length=32,
        max_steps=6,
        eval_interval=3,
    )
    first, *_, last = result.history.evaluations
    assert (first.step, last.step) == (0, 6)
    assert [it.name for it in last.tasks] == ["code", "prose", "base"]
    for before, after in zip(first.tasks[:2], last.tasks, strict=False):
        assert after.loss < before.loss
    assert result.routing is not None
    counts = {name: int(it.sum()) for name, it in result.routing.by_task.items()}
    assert counts["prose"] == 3 * counts["code"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": {}}, r"tasks \({}\) must be data by name"),
        ({"tasks": {"base": []}}, "'base' is no name of a task"),
        ({"tasks": {"a": []}, "weights": {"a": 0}}, r"weight of the task 'a' \(0\) must be a num"),
        ({"tasks": {"a": [], "b": []}, "weights": {"a": 1}}, "weight of the task 'b'"),
        ({"tasks": {"code": []}, "weights": {"cod": 1}}, "Did you mean 'code'"),
        ({"tasks": {"a": []}, "dataset": ["b"]}, "take the place of dataset"),
        ({"dataset": ["b"], "weights": {"a": 1}}, "weights of train.* belong to tasks"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    words = {"dataset": None, "tasks": None, "weights": None, "base": None, **given}
    with pytest.raises(ConfigError, match=message):
        data_given(**words)

"""Which evaluations of a run still count when it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.mcore import world
from moe_megatron.mcore.evaluation.earlier import earlier_evaluations
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.task_scores import TaskScore


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    world.join("gloo", store=world.single_process_store())
    yield
    world.leave()


def record(step: int, loss: float, split: str = "validation") -> EvalRecord:
    score = TaskScore(name="a", tokens=3, loss=loss, accuracy=0.5, kept=(1.0,))
    return EvalRecord(step=step, split=split, loss=loss, tasks=(score,))


def test_those_up_to_the_checkpoint_count_each_step_once(tmp_path: Path) -> None:
    made = [record(0, 3.0), record(4, 2.0), record(8, 1.0), record(4, 2.5), record(4, 9.0, "test")]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(it.to_json_dict()) + "\n" for it in made))
    assert earlier_evaluations(path, 6, pytest.fail) == (record(0, 3.0), record(4, 2.5))


def test_a_run_without_metrics_is_judged_anew_and_one_with_bad_ones_says_so(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    assert earlier_evaluations(None, 6, pytest.fail) == ()
    assert earlier_evaluations(path, 6, pytest.fail) == ()
    path.write_text("{no\n{}\n")
    said: list[str] = []
    assert earlier_evaluations(path, 6, said.append) == ()
    assert said[0].startswith("evaluations before step 6 do not count: ")

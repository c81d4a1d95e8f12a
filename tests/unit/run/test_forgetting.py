"""Before and after, and which checkpoint is the best."""

import json
import math
from pathlib import Path

from moe_megatron.config.checkpoint_files import METADATA
from moe_megatron.config.evaluation import Metric
from moe_megatron.run.best import best_checkpoint, write_best
from moe_megatron.telemetry.values.forgetting import forgetting, write_forgetting
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.task_scores import TaskScore


def record(step: int, loss: float, accuracy: float, kept: float = 1.0) -> EvalRecord:
    tasks = (
        TaskScore(name="code", tokens=10, loss=loss, accuracy=accuracy, kept=(kept, 0.5)),
        TaskScore(name="base", tokens=1000, loss=2.0, kept=(1.0, 1.0)),
    )
    return EvalRecord(step=step, split="validation", loss=loss, tasks=tasks)


def test_the_first_evaluation_is_compared_with_the_last(tmp_path: Path) -> None:
    test = EvalRecord(step=9, split="test", loss=1.0)
    found = forgetting([record(0, 3.0, 0.1), record(4, 2.5, 0.2), record(8, 2.0, 0.3, 0.9), test])
    assert str(found).splitlines() == [
        "tasks at step 0 -> 8",
        "task  tokens                     loss   perplexity        accuracy           experts kept",
        "code      10  3.000 -> 2.000 (-1.000)  20.1 -> 7.4  10.0% -> 30.0%    70.0% (least 50.0%)",
        "base   1,000  2.000 -> 2.000 (+0.000)   7.4 -> 7.4               -  100.0% (least 100.0%)",
    ]
    assert found is not None
    write_forgetting(tmp_path, found, (1, 2))
    written = json.loads((tmp_path / "tasks.json").read_text())
    assert (written["before_step"], written["after_step"], written["layers"]) == (0, 8, [1, 2])
    code = written["tasks"][0]
    assert code["loss_change"] == -1.0
    assert code["after"] == {"loss": 2.0, "perplexity": math.exp(2.0), "accuracy": 0.3}
    assert code["experts_kept"] == [0.9, 0.5]


def test_one_evaluation_says_nothing_of_a_change() -> None:
    assert forgetting([record(0, 3.0, 0.1)]) is None
    assert forgetting([EvalRecord(step=it, split="validation", loss=1.0) for it in (1, 2)]) is None


def run_with(place: Path, records: list[EvalRecord], saved: list[int]) -> Path:
    lines = [json.dumps(it.to_json_dict()) + "\n" for it in records]
    (place / "metrics.jsonl").write_text("".join(lines))
    for step in saved:
        folder = place / "checkpoints" / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / METADATA).write_text("{}")
    return place / "checkpoints"


def test_the_best_is_one_that_is_there_and_the_later_of_equal_ones(tmp_path: Path) -> None:
    records = [record(0, 3.0, 0.1), record(2, 1.0, 0.5), record(4, 2.0, 0.4), record(6, 2.0, 0.2)]
    checkpoints = run_with(tmp_path, [*records, record(8, math.nan, 0.3)], [4, 6, 8])
    best = best_checkpoint(tmp_path, checkpoints, Metric.read("loss"))
    assert best is not None
    assert best.step == 6  # the one of step 2 is gone
    assert best.compared == {0: 3.0, 2: 1.0, 4: 2.0, 6: 2.0}
    assert str(best) == (
        "best checkpoint: step 6, loss 2 (of 4 evaluations); it was 1 at step 2, which has no "
        "checkpoint"
    )
    write_best(tmp_path, best)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 6
    by_accuracy = best_checkpoint(tmp_path, checkpoints, Metric.read("accuracy/code"))
    assert by_accuracy is not None
    assert by_accuracy.step == 4
    assert best_checkpoint(tmp_path, checkpoints, Metric.read("accuracy")) is not None
    assert best_checkpoint(tmp_path, tmp_path / "none", Metric.read("loss")) is None

"""Runs side by side, from results and from folders."""

import json
import sys
from pathlib import Path

import pytest

from moe_megatron import compare
from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.training.results import TrainingResult


def step(number: int, loss: float) -> StepRecord:
    return StepRecord(
        step=number,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        step_seconds=0.5,
        tokens=100,
        total_steps=2,
    )


def history(first: float, last: float) -> History:
    return History(
        steps=[step(1, first), step(2, last)],
        evaluations=[EvalRecord(step=2, split="validation", loss=last + 0.5)],
        imbalances={1: 2.0, 2: 1.25},
    )


def result(folder: str, found: History) -> TrainingResult:
    return TrainingResult(
        steps=2,
        losses=found.losses,
        tokens=200,
        seconds=1.0,
        validation_loss=None,
        interrupted=False,
        run_dir=Path(folder),
        checkpoint=None,
        routing=None,
        history=found,
    )


def saved(folder: Path, found: History) -> Path:
    folder.mkdir()
    records = [*found.steps, *found.evaluations]
    lines = [json.dumps(record.to_json_dict()) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_the_table_says_how_each_run_ended(tmp_path):
    folder = saved(tmp_path / "other", history(5.0, 4.0))
    compared = compare([result("runs/one", history(3.0, 2.0)), folder])
    assert compared.rows["one"] == {
        "steps": 2,
        "tokens": 200,
        "loss": 2.0,
        "validation_loss": 2.5,
        "imbalance": 1.25,
        "tokens_per_second": 200.0,
    }
    assert compared.rows["other"]["loss"] == 4.0
    assert compared.rows["other"]["imbalance"] is None
    header, one, other = str(compared).splitlines()
    assert header.startswith("run ")
    assert one.split() == ["one", "2", "200", "2.0000", "2.5000", "1.2500", "200.0000"]
    assert other.split()[5] == "-"
    assert len(header) == len(one) == len(other)
    frame = compared.to_pandas()
    assert list(frame.index) == ["one", "other"]
    assert frame.loc["one", "loss"] == 2.0


def test_runs_of_one_name_are_numbered_and_names_can_be_given():
    runs = [result("a/run", history(3.0, 2.0)), result("b/run", history(4.0, 3.0))]
    assert list(compare(runs).histories) == ["run (1)", "run (2)"]
    assert list(compare({"small": runs[0], "large": runs[1]}).histories) == ["small", "large"]


def test_what_is_no_run_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="compare was given no run"):
        compare([])
    with pytest.raises(ConfigError, match=r"compare needs several runs; give them in a list"):
        compare(result("run", history(3.0, 2.0)))
    with pytest.raises(ConfigError, match=r"run folders, not int"):
        compare([7])
    with pytest.raises(ConfigError, match=r"is not the folder of a run \(metrics.jsonl is missing"):
        compare([tmp_path])


def test_frames_without_pandas_are_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = history(3.0, 2.0)
    with pytest.raises(BackendUnavailableError, match=r"needs pandas.*or use history.columns\(\)"):
        found.to_pandas()
    with pytest.raises(BackendUnavailableError, match=r"needs pandas.*or use comparison.rows"):
        compare([result("run", found)]).to_pandas()


def test_a_history_is_one_row_a_step():
    frame = history(3.0, 2.0).to_pandas()
    assert list(frame.index) == [1, 2]
    assert list(frame["loss"]) == [3.0, 2.0]
    assert frame["validation_loss"].isna().tolist() == [True, False]
    assert list(frame["imbalance"]) == [2.0, 1.25]
    assert repr(history(3.0, 2.0)) == "<History of 2 steps and 1 evaluations>"

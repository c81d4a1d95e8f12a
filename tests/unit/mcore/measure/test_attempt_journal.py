"""The ranks' side of the journal: what an attempt notes, in a real folder."""

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_megatron.mcore.loop.callbacks import StepEnd
from moe_megatron.mcore.measure.attempt_journal import AttemptJournal
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.values.records import StepRecord


def noted(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(event.kind, dict(event.fields)) for event in read_events(folder)]


def step_end(step: int) -> StepEnd:
    return StepEnd(
        step=step, losses={}, learning_rate=None, grad_norm=None, skipped=False, seconds=0.5
    )


def write_steps(folder: Path, last: int) -> None:
    records = (
        StepRecord(
            step=step, loss=1.0, learning_rate=None, grad_norm=None, step_seconds=2.0, tokens=1,
            total_steps=9,
        )
        for step in range(1, last + 1)
    )  # fmt: skip
    lines = [json.dumps(record.to_json_dict()) + "\n" for record in records]
    (folder / METRICS_FILE).write_text("".join(lines))


def test_an_attempt_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = AttemptJournal(run)
    journal.begin(loads=False)
    journal.on_train_start([], 0)
    for step in (1, 2):
        journal.on_step_end(step_end(step))
    journal.on_evaluations_end(2, 0.25)
    journal.on_checkpoint_start(2)
    journal.on_checkpoint_end(2)
    journal.on_checkpoint_complete(2)
    journal.end(interrupted=True)
    events = noted(run)
    assert [kind for kind, _ in events] == [
        "attempt", "first_step", "evaluated", "saving", "saved", "trained",
    ]  # fmt: skip
    begun = events[0][1]
    assert (begun["attempt"], begun["world_size"], begun["pid"]) == (1, 1, os.getpid())
    assert begun["host"]
    assert events[1][1] == {"step": 1, "seconds": 0.5}
    assert events[2][1] == {"step": 2, "seconds": 0.25}
    assert events[4][1]["step"] == 2
    assert events[5][1] == {"step": 2, "interrupted": True}


def test_resume_notes_what_is_lost(tmp_path: Path) -> None:
    AttemptJournal(tmp_path).begin(loads=False)
    write_steps(tmp_path, last=7)
    journal = AttemptJournal(tmp_path)
    assert journal.attempt == 2
    journal.begin(loads=True)
    journal.on_load_end(4, 1.5)
    journal.on_load_end(4, 1.5)
    (_, first), (_, second), (kind, resumed) = noted(tmp_path)
    assert (first["attempt"], second["attempt"], kind) == (1, 2, "resumed")
    assert resumed.pop("reached_at") == pytest.approx((tmp_path / METRICS_FILE).stat().st_mtime)
    assert resumed == {
        "step": 4, "seconds": 1.5, "reached": 7, "lost_steps": 3, "lost_seconds": 6.0,
    }  # fmt: skip


def test_attempt_that_begins_anew_loses_all_steps_before(tmp_path: Path) -> None:
    AttemptJournal(tmp_path).begin(loads=False)
    write_steps(tmp_path, last=3)
    AttemptJournal(tmp_path).begin(loads=False)
    kind, resumed = noted(tmp_path)[-1]
    assert (kind, resumed["step"], resumed["reached"]) == ("resumed", 0, 3)
    assert resumed["lost_seconds"] == 6.0


def test_checkpoint_of_the_asynchronous_writer_is_noted_when_it_is_complete(tmp_path: Path) -> None:
    journal = AttemptJournal(tmp_path)
    for step in (4, 8):
        journal.on_checkpoint_start(step)
        journal.on_checkpoint_end(step)
        journal.on_step_end(step_end(step + 1))
    assert "saved" not in dict(noted(tmp_path))
    journal.on_checkpoint_complete(4)
    assert noted(tmp_path)[-1][1]["step"] == 4
    journal.on_checkpoint_complete(8)
    journal.end(interrupted=False)
    assert [fields["step"] for kind, fields in noted(tmp_path) if kind == "saved"] == [4, 8]


def test_checkpoint_that_fails_is_noted_once_however_often_it_is_tried_again(
    tmp_path: Path,
) -> None:
    journal = AttemptJournal(tmp_path)
    journal.on_checkpoint_start(4)
    for _ in range(3):
        journal.on_checkpoint_failed(4, "No space left on device")
    journal.on_checkpoint_failed(8, "No space left on device")
    failed = [fields for kind, fields in noted(tmp_path) if kind == "save_failed"]
    assert [(it["step"], it["reason"]) for it in failed] == [
        (4, "No space left on device"),
        (8, "No space left on device"),
    ]


@pytest.mark.parametrize("launched", [True, False])
def test_work_begins_with_a_process_that_was_started_for_the_run(
    launched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("RANK", "0")
    before = time.time()
    AttemptJournal(tmp_path).begin(loads=False)
    started = noted(tmp_path)[0][1]["started"]
    if launched:
        assert started == pytest.approx(psutil.Process().create_time(), abs=0.001)
    else:
        assert before - 0.001 <= started <= time.time() + 0.001


def test_other_ranks_and_runs_without_a_folder_note_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttemptJournal(None).begin(loads=True)
    monkeypatch.setenv("RANK", "1")
    journal = AttemptJournal(tmp_path / "run")
    journal.begin(loads=False)
    journal.on_load_end(1, 0.1)
    journal.on_checkpoint_start(1)
    journal.on_checkpoint_end(1)
    journal.end(interrupted=False)
    assert not (tmp_path / "run").exists()

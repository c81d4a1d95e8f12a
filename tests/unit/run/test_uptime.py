"""The state of runs and the advice about them, from folders written by hand."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli.main import main
from moe_megatron.errors import DataError
from moe_megatron.run.uptime import uptime
from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.values.records import StepRecord

GONE = 2**22 + 1  # above the kernel's largest number of a process


def begin(run: Path, *, pid: int = GONE, host: str | None = None) -> None:
    name = socket.gethostname() if host is None else host
    note(run, "attempt", attempt=1, host=name, pid=pid, world_size=2, started=time.time())
    records = (
        StepRecord(step=step, loss=1.0, learning_rate=None, grad_norm=None, step_seconds=0.0,
                   tokens=1, total_steps=4)
        for step in (1, 2)
    )  # fmt: skip
    (run / METRICS_FILE).write_text("".join(json.dumps(r.to_json_dict()) + "\n" for r in records))
    note(run, "first_step", step=1, seconds=0.0)


def test_run_without_a_word_was_killed_with_its_launcher(tmp_path: Path) -> None:
    begin(tmp_path)
    found = uptime(tmp_path)
    assert (found.state, found.step, found.total_steps) == ("vanished", 2, 4)
    assert "left no word: they were killed together with their launcher" in found.why
    assert found.advice.startswith("no checkpoint was saved; start again with: moe-megatron train")
    note(tmp_path, "saved", step=2, seconds=0.1)
    again = f"go on from step 2 with: moe-megatron train --resume {tmp_path}"
    assert uptime(tmp_path).advice == again


@pytest.mark.parametrize(
    ("events", "state", "why"),
    [
        ([("rank_died", {"rank": 1, "reason": "killed by signal 9"}), ("ended", {"code": 137})],
         "died", "rank 1: killed by signal 9"),
        ([("ended", {"code": 93})], "died", "made no progress"),
        ([("trained", {"step": 2, "interrupted": True}), ("ended", {"code": 75})],
         "stopped", "stopped by a signal after step 2"),
        ([("trained", {"step": 4, "interrupted": False})], "done", ""),
    ],
)  # fmt: skip
def test_end_of_a_run_is_explained(
    events: list[tuple[Any, dict[str, Any]]], state: str, why: str, tmp_path: Path
) -> None:
    begin(tmp_path)
    for kind, fields in events:
        note(tmp_path, kind, **fields)
    found = uptime(tmp_path)
    assert (found.state, found.why) == (state, why)
    assert sum(found.account.rows().values()) == pytest.approx(found.account.wall)
    if events[-1] == ("ended", {"code": 93}):
        assert "it ended at the checkpoint it began with: find out why" in found.advice


def test_run_that_is_at_work(tmp_path: Path) -> None:
    begin(tmp_path, pid=os.getpid())
    now = time.time() + 100
    found = uptime(tmp_path, now=now)
    assert (found.state, found.advice) == ("running", "")
    assert found.account.wall == pytest.approx(100, abs=5)
    assert found.why.startswith("last sign of life ")


def test_run_on_another_machine_counts_as_running_until_it_is_silent(tmp_path: Path) -> None:
    begin(tmp_path, host="node17")
    assert uptime(tmp_path).state == "running"
    assert uptime(tmp_path, now=time.time() + 3600).state == "vanished"


def test_folder_without_a_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"events\.jsonl tells of no attempt to train"):
        uptime(tmp_path)
    assert main(["uptime", str(tmp_path)]) == 2
    assert "tells of no attempt to train" in capsys.readouterr().err


def test_verb_compares_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        run.mkdir()
        begin(run)
    note(runs[1], "set_aside", step=9, reason="a bit differs")
    assert main(["uptime", *map(str, runs)]) == 0
    text = capsys.readouterr().out
    for words in ("first", "second", "vanished", "2/4", "goodput", "ETTR", "wall time",
                  "set aside at step 9: a bit differs", "no checkpoint was saved"):  # fmt: skip
        assert words in text
    assert main(["uptime", str(runs[0]), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_seconds"])
    assert found["attempts"][0]["host"] == socket.gethostname()

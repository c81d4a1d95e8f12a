"""What a list says of runs: of one that trains, is over, was stopped, is empty or is damaged."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.run_facts import facts_of, run_id
from moe_megatron.webapp.run_list import RunList, UnknownRunError


def begin(run: Path, pid: int) -> None:
    host = socket.gethostname()
    note(run, "launched", host=host, pid=pid, processes=1)
    note(run, "attempt", attempt=1, world_size=1, host=host, pid=pid, started=4e9)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("alive", "events", "state"),
    [
        (True, [], "running"),
        (True, [("trained", {"step": 40})], "ended"),
        (False, [], "stopped"),
        (False, [("trained", {"step": 40}), ("ended", {"code": 0})], "ended"),
        (
            False,
            [("trained", {"step": 9, "interrupted": True}), ("ended", {"code": 75})],
            "stopped",
        ),
        (
            False,
            [("rank_died", {"rank": 0, "reason": "killed"}), ("ended", {"code": 1})],
            "stopped",
        ),
    ],
)
def test_state_is_what_the_journal_and_its_processes_say(tmp_path, alive, events, state) -> None:
    run = write_run(tmp_path / "run", 5, history=0)
    begin(run, os.getpid() if alive else dead_process())
    for kind, fields in events:
        note(run, kind, **fields)
    facts = facts_of(run)
    assert (facts.state, facts.problem, facts.loss) == (state, None, 9 / 5)


def test_without_a_journal_a_run_trains_while_it_writes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 5, history=0)
    assert facts_of(run).state == "running"
    os.utime(run / METRICS_FILE, (1e9, 1e9))
    assert facts_of(run).state == "running"  # a model that a monitor counts has no other file
    os.utime(run / ROUTING_FILE, (1e9, 1e9))
    assert facts_of(run).state == "stopped"


def test_an_empty_and_a_damaged_run_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("")
    damaged = write_run(tmp_path / "damaged", 3, history=0)
    (damaged / METRICS_FILE).write_text('{"kind": "step", "step": 1}\n')
    (tmp_path / "no run").mkdir()
    facts = {it.name: it for it in RunList([tmp_path]).facts()}
    assert facts.keys() == {"empty", "damaged"}
    assert (facts["empty"].state, facts["empty"].last_step) == ("empty", 0)
    assert facts["damaged"].state == "unreadable"
    assert "metrics.jsonl" in str(facts["damaged"].problem)
    assert str(tmp_path) not in str(facts["damaged"].problem)


def test_runs_are_found_by_ids_of_the_list_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", 3, history=0)
    other = write_run(tmp_path / "other", 3, history=0)
    runs = RunList([tmp_path / "runs", tmp_path / "later"])
    assert runs.reader(run_id(run)).run_dir == run
    for wanted in (run_id(other), "a", "../other", str(other), "", "%2e%2e"):
        with pytest.raises(UnknownRunError, match="no run with this id"):
            runs.reader(wanted)


def test_few_runs_are_held_open(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{n}", 1, history=0) for n in range(12)]
    runs = RunList([tmp_path])
    for folder in folders:
        runs.reader(run_id(folder))
    assert len(runs._open) == 8

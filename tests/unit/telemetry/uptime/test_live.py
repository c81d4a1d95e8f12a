"""The account of a run that trains agrees with the one that is read from its folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.uptime.live import LiveAccount
from moe_megatron.telemetry.uptime.steps import StepTimes
from moe_megatron.telemetry.values.records import StepRecord


def test_steps_and_events_that_come_later_are_counted(
    tmp_path: Path, make_step: Callable[..., StepRecord]
) -> None:
    note(tmp_path, "attempt", attempt=1, host="h", pid=1, started=0.0)
    first = make_step(1, step_seconds=2.0)
    (tmp_path / METRICS_FILE).write_text(json.dumps(first.to_json_dict()) + "\n")
    live = LiveAccount(tmp_path)
    found = live.take()
    assert found is not None
    assert (found.attempts, found.kept_steps, found.lost["save"]) == (1, 1, 0.0)
    live.add(make_step(2, step_seconds=3.0))
    note(tmp_path, "first_step", step=1, seconds=2.0)
    note(tmp_path, "saved", step=2, seconds=7.0)
    for _ in range(2):  # each event counts once
        found = live.take()
        assert found is not None
        assert (found.kept, found.kept_steps, found.lost["save"]) == (5.0, 2, 7.0)
        assert sum(found.rows().values()) == pytest.approx(found.wall)


def test_steps_that_a_rollback_takes_back_count_once(
    tmp_path: Path, make_step: Callable[..., StepRecord]
) -> None:
    note(tmp_path, "attempt", attempt=1, host="h", pid=1, started=0.0)
    live = LiveAccount(tmp_path)
    for step in (1, 2, 3):
        live.add(make_step(step, step_seconds=1.0))
    note(tmp_path, "rolled_back", step=4, to_step=1, lost_steps=2, lost_seconds=2.0)
    live.rewind(1)
    live.add(make_step(2, step_seconds=1.0))
    found = live.take()
    assert found is not None
    assert (found.kept_steps, found.lost_steps, found.lost["recomputed"]) == (2, 2, 2.0)


def test_run_without_a_journal_has_no_account(tmp_path: Path) -> None:
    assert LiveAccount(tmp_path).take() is None
    assert StepTimes.read(tmp_path).kept == 0

"""The journal of a run: whole lines, never rewound, and never a reason to fail."""

import json
import multiprocessing
from pathlib import Path

import pytest

from moe_megatron.telemetry.journal import EVENTS_FILE, note, read_events


def test_events_come_back_in_order_with_their_fields(tmp_path: Path) -> None:
    note(tmp_path, "attempt", attempt=1, world_size=2)
    note(tmp_path, "saved", step=50, seconds=0.5)
    first, second = read_events(tmp_path)
    assert (first.kind, first.fields) == ("attempt", {"attempt": 1, "world_size": 2})
    assert (second.kind, second.fields) == ("saved", {"step": 50, "seconds": 0.5})
    assert second.time >= first.time > 1.7e9


def test_an_unknown_kind_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unknown kind of event: exploded"):
        note(tmp_path, "exploded")  # type: ignore[arg-type]


def test_lines_that_are_no_event_are_skipped(tmp_path: Path) -> None:
    note(tmp_path, "saved", step=1)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"time": 1, "kind": "of tomorrow"}\n[1]\n{"kind": "saved"}\n{"time": 1, "ki\n')
    note(tmp_path, "saved", step=2)
    assert [event.fields["step"] for event in read_events(tmp_path)] == [1, 2]


def test_a_missing_folder_is_logged_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note(tmp_path / "gone", "saved", step=1)
    assert "cannot note" in caplog.text
    assert "No such file or directory" in caplog.text
    assert list(read_events(tmp_path / "gone")) == []
    note(None, "saved", step=1)


def _write(folder: Path, writer: int) -> None:
    for step in range(200):
        note(folder, "saved", step=step, writer=writer, padding="x" * 300)


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    writers = [
        multiprocessing.get_context("fork").Process(target=_write, args=(tmp_path, number))
        for number in range(4)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    lines = (tmp_path / EVENTS_FILE).read_text().splitlines()
    assert len(lines) == 800
    assert all(json.loads(line)["padding"] for line in lines)

"""Output of others into a file that is full, gone and back."""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks import backoff
from moe_megatron.telemetry.sinks.health import SinkHealth, SinkState
from moe_megatron.telemetry.sinks.log_file import LogFile
from moe_megatron.testing.small_disk import empty, fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.0)


def test_lines_are_whole_and_in_order_after_an_outage(disk: Path, tmp_path: Path) -> None:
    health = SinkHealth(tmp_path)
    with LogFile(disk / "rank0.log", "megatron_log", health) as file, redirect_stdout(file):
        print("before")
        fill(disk)
        for number in range(100):
            print("during", number, "x" * 100)
        assert health.states()["megatron_log"] == SinkState(True, 1, 0)
        assert (disk / "rank0.log").read_text().startswith("before\n")
        empty(disk)
    lines = (disk / "rank0.log").read_text().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["during", str(n)] for n in range(100)]
    assert health.states()["megatron_log"] == SinkState(False, 1, 0)
    assert [(e.kind, e.fields["sink"]) for e in read_events(tmp_path)] == [
        ("sink_failed", "megatron_log"),
        ("sink_restored", "megatron_log"),
    ]


@pytest.mark.usefixtures("impatient")
def test_lines_beyond_the_bound_are_counted_and_their_number_stands_in_the_file(
    disk: Path,
) -> None:
    health = SinkHealth()
    file = LogFile(disk / "a", "json_log", health, bound=50, gap=lambda n: json.dumps({"gap": n}))
    fill(disk)
    for number in range(20):
        file.write(json.dumps({"line": number}) + "\n")
    dropped = health.states()["json_log"].dropped
    assert 0 < dropped < 20
    empty(disk)
    file.write('{"line": 20}\n')  # it finds the bound reached, and shows that there is space
    file.write('{"line": 21}\n')
    file.close()
    lines = [json.loads(line) for line in (disk / "a").read_text().splitlines()]
    kept = 20 - dropped
    assert lines[:kept] == [{"line": number} for number in range(kept)]
    assert lines[kept:] == [{"gap": dropped + 1}, {"line": 21}]


def test_removed_folder_is_noticed_and_begun_anew(tmp_path: Path) -> None:
    health = SinkHealth(tmp_path)
    file = LogFile(tmp_path / "logs" / "a", "megatron_log", health)
    file.write("old\n")
    shutil.rmtree(tmp_path / "logs")
    file.write("new\n")
    assert health.states()["megatron_log"].broken
    file.close()
    assert (tmp_path / "logs" / "a").read_text() == "new\n"
    (failed, _) = read_events(tmp_path)
    assert failed.fields["reason"] == "it was removed, and a new one begins"


def test_file_that_cannot_be_opened_raises_nothing_and_loses_what_is_counted(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    health = SinkHealth()
    with LogFile(tmp_path / "file" / "a", "megatron_log", health) as file:
        file.write("one\ntwo\nthr")
    assert health.states()["megatron_log"] == SinkState(True, 1, 3)


@pytest.mark.usefixtures("impatient")
def test_handler_that_logs_about_its_own_file_does_not_hang(disk: Path) -> None:
    """The message about the outage goes to the file of the outage, on two threads."""
    health = SinkHealth()
    stream = LogFile(disk / "a", "json_log", health)
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("moe_megatron")
    logger.addHandler(handler)
    try:
        fill(disk)
        write = lambda: [logger.warning("line %s", "x" * 50) for _ in range(300)]  # noqa: E731
        threads = [threading.Thread(target=write, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        empty(disk)
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        logger.removeHandler(handler)
    stream.close()
    text = (disk / "a").read_text()
    assert text.count("line x") == 600

"""Requests of a run as files: heard while it listens, once each, and by nobody else."""

import os
import time
from pathlib import Path

import pytest

from moe_megatron.platform import requests
from moe_megatron.platform.requests import ASKED, ask, listening, take


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_LOOKS_SECONDS", 0.01)


def wait_for(check) -> None:
    deadline = time.monotonic() + 10
    while not check() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert check()


def test_a_run_that_listens_hears_each_request_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(tmp_path, "stop")
    (tmp_path / ASKED).mkdir()
    ask(tmp_path, "stop")  # of an attempt that was killed
    heard: list[str] = []
    with listening(tmp_path, heard.append):
        ask(tmp_path, "checkpoint")
        wait_for(lambda: heard)
        (tmp_path / ASKED / "anything").touch()
        ask(tmp_path, "stop")
        wait_for(lambda: len(heard) == 2)
        time.sleep(0.1)
    assert heard == ["checkpoint", "stop"]
    assert not (tmp_path / ASKED).exists()


def test_what_is_asked_twice_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / ASKED).mkdir()
    ask(tmp_path, "checkpoint")
    ask(tmp_path, "checkpoint")
    assert take(tmp_path) == ["checkpoint"]
    assert take(tmp_path) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ASKED).mkdir()
    (tmp_path / ASKED / "stop").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):  # noqa: PT011
        ask(tmp_path, "stop")
    assert os.listdir(tmp_path) == [ASKED]


def test_a_folder_that_cannot_be_made_ends_no_run(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    with listening(tmp_path / "file", print):
        pass
    assert "cannot be asked for anything" in caplog.text
    with listening(tmp_path / "run", print):
        (tmp_path / "run" / ASKED).rmdir()
        time.sleep(0.05)
        with pytest.raises(FileNotFoundError):
            ask(tmp_path / "run", "stop")

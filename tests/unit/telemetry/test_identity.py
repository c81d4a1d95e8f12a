"""The id of a run: unique, the same for all its processes and attempts, and not that of a copy."""

import multiprocessing
import re
import shutil
from pathlib import Path

import pytest

from moe_megatron.telemetry.identity import RUN_ID_FILE, run_id


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_LENS_RUN_ID", raising=False)


def test_two_runs_of_one_name_differ_and_each_keeps_its_id(tmp_path: Path) -> None:
    first, second = tmp_path / "ada" / "demo_moe", tmp_path / "bob" / "demo_moe"
    assert re.fullmatch("demo_moe-[0-9a-f]{6}", run_id(first))
    assert run_id(first) != run_id(second)
    assert run_id(first) == run_id(first)
    assert [path.name for path in first.iterdir()] == [RUN_ID_FILE]


def test_lens_names_a_run_and_a_run_without_folder_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_id(None) == "moe"
    monkeypatch.setenv("NEMO_LENS_RUN_ID", "given")
    assert run_id(tmp_path / "a") == "given"


def _ask(folder: Path, answers: Path, number: int) -> None:
    (answers / str(number)).write_text(run_id(folder))


def test_all_processes_that_ask_at_once_get_one_id(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    (tmp_path / "answers").mkdir()
    given = [(tmp_path / "run", tmp_path / "answers", number) for number in range(16)]
    processes = [context.Process(target=_ask, args=arguments) for arguments in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    answers = {path.read_text() for path in (tmp_path / "answers").iterdir()}
    assert answers == {run_id(tmp_path / "run")}


def test_moved_folder_keeps_its_id_and_a_copy_gets_another(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_id(tmp_path / "b") == first
    run_id(tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    copied = run_id(tmp_path / "d")
    assert copied.startswith("d-")
    assert copied == run_id(tmp_path / "d")
    assert copied != run_id(tmp_path / "c")


def test_link_to_the_folder_is_the_same_run(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert run_id(tmp_path / "link") == first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}'])
def test_damaged_file_gives_the_name_of_the_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_ID_FILE).write_text(text)
    assert run_id(tmp_path / "run") == "run"


def test_folder_that_cannot_be_written_gives_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run_id(tmp_path / "file" / "run") == "run"

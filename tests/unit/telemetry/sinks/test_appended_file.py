"""Whole lines or none, on a disk that is really full."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.telemetry.sinks.appended_file import AppendedFile
from moe_megatron.testing.small_disk import empty, fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_full_disk_keeps_nothing_of_a_line_and_takes_it_later(disk: Path) -> None:
    file = AppendedFile(disk / "logs" / "a.jsonl")
    file.append(b"first\n")
    fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        file.append(b"x" * 10_000 + b"\n")  # the page that is begun has room for a part of it
    assert (disk / "logs" / "a.jsonl").read_bytes() == b"first\n"
    empty(disk)
    file.append(b"second\n")
    file.close()
    assert (disk / "logs" / "a.jsonl").read_bytes() == b"first\nsecond\n"


def test_limit_of_a_file_in_the_middle_of_a_line_keeps_nothing_of_it(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "a")
    file.append(b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(b"y" * 200 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a").read_bytes() == b"first\n"


@pytest.mark.parametrize("removed", ["a.log", "logs"])
def test_removed_file_or_folder_is_noticed_once_and_begun_anew(
    tmp_path: Path, removed: str
) -> None:
    path = tmp_path / "run" / "logs" / "a.log"
    file = AppendedFile(path, tmp_path / "run")
    file.append(b"old\n")
    path.unlink() if removed == path.name else shutil.rmtree(path.parent)
    with pytest.raises(FileNotFoundError, match="it was removed, and a new one begins"):
        file.append(b"new\n")
    file.append(b"new\n")
    assert path.read_bytes() == b"new\n"
    file.close()


def test_file_that_another_one_replaced_is_noticed(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "a")
    file.append(b"old\n")
    (tmp_path / "b").write_bytes(b"other\n")
    (tmp_path / "b").replace(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        file.append(b"new\n")
    file.append(b"new\n")
    assert (tmp_path / "a").read_bytes() == b"other\nnew\n"


def test_closed_file_is_opened_again_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = AppendedFile(tmp_path / "a")
    for _ in range(3):
        file.append(b"line\n")
        file.close()
    assert (tmp_path / "a").read_bytes() == b"line\n" * 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_folder_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    files = AppendedFile(run / "a"), AppendedFile(run / "logs" / "b", run)
    for file in files:
        file.append(b"1\n")
    run.rename(tmp_path / "aside")
    for file in files:
        with pytest.raises(FileNotFoundError, match="it was removed"):
            file.append(b"2\n")
        with pytest.raises(FileNotFoundError, match=r"run was removed"):
            file.append(b"2\n")
    assert not run.exists()

import errno
import fcntl
import os
import resource
import threading

import pytest

from moe_megatron.errors import DataError
from moe_megatron.files import (
    default_cache_dir,
    exclusive_lock,
    explained_writes,
    publishing,
    working_directory,
)


def test_default_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MOE_MEGATRON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "moe_megatron"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "moe_megatron"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "set cache_dir or MOE_MEGATRON_CACHE"),
        (errno.EROFS, "set cache_dir or MOE_MEGATRON_CACHE"),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_explained_writes_names_path_and_remedy(tmp_path, code, remedy):
    with (
        pytest.raises(DataError, match=f"cannot write {tmp_path}.*{remedy}"),
        explained_writes(tmp_path),
    ):
        raise OSError(code, os.strerror(code))


def test_publishing_replaces_a_file_whole(tmp_path):
    target = tmp_path / "x"
    target.write_text("old")
    with publishing(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_publishing_replaces_a_directory(tmp_path):
    target = tmp_path / "d"
    for content in ("old", "new"):
        with publishing(target) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]


def test_publishing_leaves_nothing_after_an_interrupt(tmp_path):
    def interrupted():
        with publishing(tmp_path / "x") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_publishing_on_a_full_disk_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match="ulimit -f"), publishing(tmp_path / "x") as partial:
            partial.write_bytes(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_publishing_below_a_file_names_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="a file is where a directory is needed"),
        publishing(tmp_path / "file" / "x"),
    ):
        pass


def test_exclusive_lock_admits_one_at_a_time(tmp_path):
    inside = []
    overlaps = []

    def work():
        for _ in range(20):
            with exclusive_lock(tmp_path / "x"):
                inside.append(1)
                overlaps.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 80
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks_names_the_remedy(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(DataError, match="no locks; choose a local directory"),
        publishing(tmp_path / "x"),
    ):
        pass


def test_working_directory_removes_leftovers_of_a_killed_run(tmp_path):
    leftover = tmp_path / ".x.partial-dead"
    leftover.mkdir()
    (leftover / "part-0.bin").write_text("half")
    with working_directory(tmp_path / "x") as work:
        assert not leftover.exists()
        assert work.is_dir()
    assert list(tmp_path.iterdir()) == []

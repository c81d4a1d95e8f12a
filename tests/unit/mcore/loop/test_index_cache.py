"""Cached indices are those of the data, whole, or built again."""

from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.mcore.loop import index_cache


def build(folder: Path) -> list[str]:
    """Build what is missing, as Megatron does; the names that were built."""
    built = []
    with index_cache.checked(folder):
        for name in ("a-document_index.npy", "a-sample_index.npy"):
            if not (folder / name).is_file():
                np.save(folder / name, np.arange(100))
                built.append(name)
        (folder / "a-description.txt").write_text("a")
    return built


def test_whole_indices_are_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "indices"
    assert len(build(folder)) == 2
    assert build(folder) == []


@pytest.mark.parametrize("damage", ["cut", "other byte", "empty", "not recorded"])
def test_damaged_index_is_built_again(damage: str, tmp_path: Path) -> None:
    build(tmp_path)
    file = tmp_path / "a-sample_index.npy"
    whole = file.read_bytes()
    if damage == "not recorded":
        (tmp_path / index_cache.SUMS).write_text("{")
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        file.write_bytes({"cut": whole[:300], "other byte": changed, "empty": b""}[damage])
    assert "a-sample_index.npy" in build(tmp_path)
    assert file.read_bytes() == whole
    assert build(tmp_path) == []


def test_file_is_read_once_unless_it_may_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "a-sample_index.npy"
    file.write_bytes(b"new")
    first = index_cache._sum(file)
    file.write_bytes(b"old")  # within one tick of the file system's clock, perhaps
    assert index_cache._sum(file) != first
    before = index_cache._TICK_NS
    index_cache._TICK_NS = 0  # as if it had been written long ago
    try:
        once = index_cache._sum(file)
        assert index_cache._sum(file) == once
        assert index_cache._seen[file][1] == once
        file.write_bytes(b"bad")
        assert index_cache._sum(file) != once
    finally:
        index_cache._TICK_NS = before
    assert index_cache._sum(file) != once


def test_build_that_failed_is_not_taken_for_whole(tmp_path: Path) -> None:
    def fail() -> None:
        with index_cache.checked(tmp_path):
            (tmp_path / "a-document_index.npy").write_bytes(b"half")
            raise FileNotFoundError("the dataset")

    with pytest.raises(FileNotFoundError, match="the dataset"):
        fail()
    assert "a-document_index.npy" in build(tmp_path)


def test_data_that_is_prepared_again_gets_other_indices(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    before = index_cache.folder_of(tmp_path, ["0.5", str(prefix)])
    (tmp_path / "data.idx").write_bytes(b"x")
    after = index_cache.folder_of(tmp_path, ["0.5", str(prefix)])
    assert before != after == index_cache.folder_of(tmp_path, ["0.5", str(prefix)])


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot write .*file"),
        index_cache.checked(tmp_path / "file"),
    ):
        pass

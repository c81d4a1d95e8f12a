"""Room on a disk."""

from pathlib import Path

import pytest

from moe_megatron.platform.disk import room_problem, size_of_folder


def test_room_is_asked_of_the_disk(tmp_path: Path) -> None:
    assert room_problem(tmp_path, 1) == ""
    problem = room_problem(tmp_path, 2**60)
    assert problem.startswith("No space left on device: ")
    assert problem.endswith(" GiB are free, and the checkpoint before has 1073741824.00 GiB")
    with pytest.raises(FileNotFoundError):
        room_problem(tmp_path / "nowhere", 1)


def test_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(10))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(5))
    assert size_of_folder(tmp_path) == 15
    assert size_of_folder(tmp_path / "nowhere") == 0

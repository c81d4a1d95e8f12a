"""Each complete line is read once; a file in place of another begins anew."""

from pathlib import Path

import pytest

from moe_megatron.errors import DataError
from moe_megatron.webapp.tail import Tail


def test_lines_are_read_once_and_halves_wait(tmp_path: Path) -> None:
    path, anew = tmp_path / "f", []
    tail = Tail(path)
    assert list(tail.read(lambda: anew.append(1))) == []
    path.write_bytes(b"one\ntwo\nthr")
    assert list(tail.read(lambda: anew.append(1))) == [b"one\n", b"two\n"]
    assert list(tail.read(lambda: anew.append(1))) == []
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert list(tail.read(lambda: anew.append(1))) == [b"three\n"]
    assert anew == []


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_is_replaced_or_cut_begins_anew(tmp_path: Path, replaced: bool) -> None:
    path, anew = tmp_path / "f", []
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(path)
    assert len(list(tail.read(lambda: anew.append(1)))) == 2
    other = tmp_path / "other" if replaced else path
    other.write_bytes(b"new\n")
    other.replace(path)
    assert list(tail.read(lambda: anew.append(1))) == [b"new\n"]
    assert anew == [1]


def test_a_line_without_end_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"ok\n" + b"x" * 50)
    with pytest.raises(DataError, match="cut it off at byte 3"):
        list(Tail(path).read(lambda: None, most_bytes=20))

"""Ranges of open files, read in parts of a small buffer."""

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.checkpoint.formats.byte_ranges import (
    BUFFER_BYTES,
    Crc32,
    digest,
    read_into,
    read_into_parts,
)

CONTENT = random.Random(1).randbytes(3 * BUFFER_BYTES)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        yield file.fileno()


# Nothing, less than a buffer, a whole one, one and a bit, and more than the file has.
@pytest.mark.parametrize("nbytes", [0, 5, BUFFER_BYTES, BUFFER_BYTES + 1, len(CONTENT)])
def test_digest_is_that_of_the_bytes_of_the_range(descriptor: int, nbytes: int) -> None:
    expected = zlib.crc32(CONTENT[7 : 7 + nbytes])
    assert digest(descriptor, 7, nbytes, Crc32) == f"{expected:08x}"


def test_bytes_after_the_end_of_the_file_are_not_counted(descriptor: int) -> None:
    buffer = memoryview(bytearray(10))
    assert read_into(descriptor, len(CONTENT) - 4, buffer) == 4
    assert buffer == CONTENT[-4:] + bytes(6)
    assert read_into(descriptor, len(CONTENT), buffer) == 0


def test_parts_are_filled_one_after_the_other(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [memoryview(bytearray(size)) for size in (3, 0, 5, 40)]
    assert read_into_parts(descriptor, 7, parts) == 48
    assert b"".join(parts) == CONTENT[7:55]

    read = os.preadv  # a system may give less than it was asked for
    monkeypatch.setattr(os, "preadv", lambda file, into, at: read(file, [into[0][:2]], at))
    parts = [memoryview(bytearray(size)) for size in (3, 0, 5, 40)]
    assert read_into_parts(descriptor, 7, parts) == 48
    assert b"".join(parts) == CONTENT[7:55]
    assert read_into_parts(descriptor, len(CONTENT) - 4, parts) == 4

"""Ranges of open files, read in parts of a small buffer."""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.checkpoint.formats.byte_ranges import BUFFER_BYTES, Crc32, digest, read_into

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

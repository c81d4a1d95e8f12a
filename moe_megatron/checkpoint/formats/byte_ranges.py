"""Writes, reads and checksums ranges of bytes in open files.

The checksum is xxh3 if that package is installed, else CRC-32. All bytes go through a small buffer
that stays in the processor's cache.
"""

import os
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

try:
    import xxhash
except ImportError:  # pragma: no cover - it comes with `datasets`
    xxhash = None  # type: ignore[assignment]

BUFFER_BYTES = 256 * 1024
_WIDEST = 8
"""Size in bytes of the widest element type."""


class Checksum(Protocol):
    """A checksum that is computed piece by piece."""

    def update(self, data: memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


class Crc32:
    """CRC-32 from the standard library."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""
        return f"{self._value:08x}"


ALGORITHMS: dict[str, Callable[[], Checksum]] = {"crc32": Crc32}
if xxhash is not None:
    ALGORITHMS["xxh3"] = xxhash.xxh3_64

DEFAULT = "xxh3" if "xxh3" in ALGORITHMS else "crc32"
"""The algorithm for new conversions."""


class RangeWriter:
    """Writes a range of a file from an offset on, and computes its checksum."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._checksum = ALGORITHMS[DEFAULT]()

    def room(self, wanted: int) -> memoryview:
        """A free part of the buffer to fill: `wanted` bytes, or fewer but whole elements."""
        if len(self._buffer) - self._filled < _WIDEST:
            self._flush()
        free = len(self._buffer) - self._filled
        return self._buffer[self._filled :][: min(wanted, free // _WIDEST * _WIDEST)]

    def advance(self, nbytes: int) -> None:
        """Declare that so many bytes of the room have been filled."""
        self._filled += nbytes

    def write(self, data: memoryview) -> None:
        """Write bytes."""
        done = 0
        while done < len(data):
            room = self.room(len(data) - done)
            room[:] = data[done : done + len(room)]
            self.advance(len(room))
            done += len(room)

    def finish(self) -> str:
        """Write the rest of the buffer; returns the checksum of the whole range."""
        self._flush()
        return self._checksum.hexdigest()

    def _flush(self) -> None:
        data = self._buffer[: self._filled]
        self._checksum.update(data)
        while len(data):
            count = os.pwrite(self._descriptor, data, self._offset)
            self._offset += count
            data = data[count:]
        self._filled = 0


def read_into(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Fill a buffer with the bytes at an offset.

    Returns:
        The number of bytes read, which is less than the size of the buffer only at the file's end.
    """
    return read_into_parts(descriptor, offset, [buffer])


def read_into_parts(descriptor: int, offset: int, buffers: Iterable[memoryview]) -> int:
    """Fill buffers, one after the other, with the bytes at an offset, by one read if it can be.

    Returns:
        As of `read_into`, of all buffers together.
    """
    left = [it for it in buffers if len(it)]
    done = 0
    while left:
        count = os.preadv(descriptor, left, offset + done)
        if not count:
            break
        done += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left:
            left[0] = left[0][count:]
    return done


def digest(descriptor: int, offset: int, nbytes: int, algorithm: Callable[[], Checksum]) -> str:
    """Checksum of a range, or of the part of it before the end of the file."""
    running = algorithm()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    at, end = offset, offset + nbytes
    while at < end:
        part = buffer[: end - at]
        count = read_into(descriptor, at, part)
        running.update(part[:count])
        if count < len(part):
            break
        at += count
    return running.hexdigest()

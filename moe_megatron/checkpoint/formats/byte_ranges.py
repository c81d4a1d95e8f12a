"""Ranges of bytes in open files: written, read, and summed with a fast checksum.

The checksum is xxh3 where that package is installed, else CRC-32. All of it goes through one small
buffer, which stays in the processor's cache.
"""

import os
import zlib
from collections.abc import Callable
from typing import Protocol

try:
    import xxhash
except ImportError:  # pragma: no cover - it comes with `datasets`
    xxhash = None  # type: ignore[assignment]

BUFFER_BYTES = 256 * 1024
_WIDEST = 8
"""Bytes of the widest element."""


class Checksum(Protocol):
    """Takes bytes, part by part."""

    def update(self, data: memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


class Crc32:
    """CRC-32, of the standard library."""

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
"""What new conversions use."""


class RangeWriter:
    """Writes a range of a file from an offset onwards, and sums what it writes."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._checksum = ALGORITHMS[DEFAULT]()

    def room(self, wanted: int) -> memoryview:
        """A free part of the buffer, to be filled: all that is wanted, or whole elements of it."""
        if len(self._buffer) - self._filled < _WIDEST:
            self._flush()
        free = len(self._buffer) - self._filled
        return self._buffer[self._filled :][: min(wanted, free // _WIDEST * _WIDEST)]

    def advance(self, nbytes: int) -> None:
        """Note that room was filled."""
        self._filled += nbytes

    def write(self, data: memoryview) -> None:
        """Write bytes."""
        at = 0
        while at < len(data):
            room = self.room(len(data) - at)
            room[:] = data[at : at + len(room)]
            self.advance(len(room))
            at += len(room)

    def finish(self) -> str:
        """Write what is left; gives the checksum of the whole range."""
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
        How many bytes there were: fewer than the buffer holds only where the file ends.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def digest(descriptor: int, offset: int, nbytes: int, algorithm: Callable[[], Checksum]) -> str:
    """Checksum of a range; where the file ends within it, of the bytes that there are."""
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

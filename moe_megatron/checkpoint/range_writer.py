"""Writes a range of a file from its beginning to its end through one small buffer, and sums it.

The buffer stays in the processor's cache, where its bytes are read, inspected, summed and written.
"""

import os

from moe_megatron.checkpoint import checksum

BUFFER_BYTES = 256 * 1024
_WIDEST = 8
"""Bytes of the widest element."""


class RangeWriter:
    """Writes from an offset onwards."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._checksum = checksum.ALGORITHMS[checksum.DEFAULT]()

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

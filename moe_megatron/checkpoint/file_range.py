"""Reads ranges of open files: into memory, or only for their checksum."""

import os
from collections.abc import Callable

from moe_megatron.checkpoint.checksum import Checksum
from moe_megatron.checkpoint.range_writer import BUFFER_BYTES


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

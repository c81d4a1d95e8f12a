"""Checksums of the blocks of a file: computing them, and finding those that differ."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats import byte_ranges
from moe_megatron.checkpoint.integrity.manifest import Block

_SMALLEST = 256 * 1024
_MOST = 4096
"""Blocks of a file, about: the manifest stays small, and a block names few tensors."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a file, and what its checksum should be."""

    file: str
    begin: int
    end: int
    digest: str


def blocks_of(path: Path) -> tuple[Block, ...]:
    """Flush a file to the disk, read it back, and compute the checksums of its blocks.

    Raises:
        OSError: It cannot be read or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
        step = _block_size(size)
        algorithm = byte_ranges.ALGORITHMS[byte_ranges.DEFAULT]
        lengths = ((begin, min(step, size - begin)) for begin in range(0, size, step))
        return tuple(
            (nbytes, byte_ranges.digest(descriptor, begin, nbytes, algorithm))
            for begin, nbytes in lengths
        )
    finally:
        os.close(descriptor)


def _block_size(size: int) -> int:
    step = _SMALLEST
    while size > step * _MOST:
        step *= 2
    return step


def spans(file: str, blocks: Sequence[Block]) -> Iterator[Span]:
    """The blocks of a file with their positions."""
    begin = 0
    for nbytes, digest in blocks:
        yield Span(file, begin, begin + nbytes, digest)
        begin += nbytes


def size_of(blocks: Sequence[Block]) -> int:
    """Size of the file that the blocks make up."""
    return sum(nbytes for nbytes, _ in blocks)


def changed(folder: Path, expected: Iterable[Span], algorithm: str) -> list[Span]:
    """The ranges whose bytes are not what they should be; unreadable ones are among them."""
    make = byte_ranges.ALGORITHMS[algorithm]
    found: list[Span] = []
    opened: dict[str, int] = {}
    try:
        for span in expected:
            try:
                if span.file not in opened:
                    opened[span.file] = os.open(folder / span.file, os.O_RDONLY)
                length = span.end - span.begin
                digest = byte_ranges.digest(opened[span.file], span.begin, length, make)
            except OSError:
                digest = ""
            if digest != span.digest:
                found.append(span)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return found

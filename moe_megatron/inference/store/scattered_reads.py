"""Pieces of files that belong together in memory, read by as few positioned reads as can be."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats.byte_ranges import read_into_parts
from moe_megatron.errors import CheckpointError
from moe_megatron.inference.cache.policies import Key


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file that belong at a place of memory."""

    file: str
    offset: int
    nbytes: int
    place: int


@dataclass(frozen=True, slots=True)
class Read:
    """One positioned read, into parts of memory."""

    file: str
    offset: int
    parts: tuple[slice, ...]


def joined(pieces: Iterable[Piece]) -> tuple[Read, ...]:
    """Pieces as few reads, in the order of the file."""
    reads: list[Read] = []
    end = ("", -1)
    for piece in sorted(pieces, key=lambda it: (it.file, it.offset)):
        part = slice(piece.place, piece.place + piece.nbytes)
        if (piece.file, piece.offset) == end:
            last = reads.pop()
            reads.append(Read(last.file, last.offset, (*last.parts, part)))
        else:
            reads.append(Read(piece.file, piece.offset, (part,)))
        end = (piece.file, piece.offset + piece.nbytes)
    return tuple(reads)


class OpenFiles:
    """Files of a folder that are read from, by several threads at once."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._files = {
            name: os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in set(names)
        }

    def read(self, key: Key, reads: Sequence[Read], memory: memoryview) -> None:
        """Fill memory with an expert.

        Raises:
            CheckpointError: A file is shorter than it was, or cannot be read.
        """
        for read in reads:
            parts = [memory[part] for part in read.parts]
            try:
                count = read_into_parts(self._files[read.file], read.offset, parts)
                if count < sum(map(len, parts)):
                    raise EOFError("the file ends before it")
            except (OSError, EOFError) as error:
                layer, expert = key
                raise CheckpointError(
                    f"{self._folder / read.file}: expert {expert} of layer {layer + 1} cannot be "
                    f"read: {error}; restore the file."
                ) from error

    def close(self) -> None:
        """Close them."""
        while self._files:
            os.close(self._files.popitem()[1])

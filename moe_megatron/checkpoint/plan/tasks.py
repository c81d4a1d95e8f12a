"""A conversion as data: files that will exist, and tasks that each fill one range of one of them.

A plan is made from headers alone and holds everything that execution needs, so that it can be
shown, hashed, stopped and taken up again. It does not know what the tensors mean.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.progress import amount
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import Noise

_COPY_BYTES = 64 * 2**20
"""Longest range that one task copies, so that a stopped conversion loses little."""
_TILE_BYTES = 4 * 2**20
"""Longest range that one task computes: it is held in memory, with its sources."""
_SUM_BYTES = 2**20
"""The same where terms are added, each of them in float32."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that is read, as it was when the plan was made."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Describe a file.

        Raises:
            CheckpointError: It is missing or unreadable.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was planned with.

        Raises:
            CheckpointError: It was replaced, written or removed.
        """
        if SourceFile.of(self.path) != self:
            raise CheckpointError(
                f"{self.path} changed while it was being converted; wait until nothing writes to "
                "it and start again. The destination is as it was."
            )


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file that is written."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Factors of quantised weights, one for each square block of them."""

    view: View
    """The factors, F32."""
    block: int
    """Rows and columns of a block."""
    row: int
    """Row of the whole matrix at which the scaled move begins."""
    column: int


@dataclass(frozen=True, slots=True)
class Move:
    """Elements of a source and where they go, in the same order."""

    source: View | Noise
    dtype: str
    """Type in the source."""
    target: View
    scale: Scale | None = None
    weight: float | None = None
    """Factor of a term of a sum: moves with the same target are added. None: there is no sum."""

    @property
    def view(self) -> View:
        """The source of a move that is read from a file."""
        assert isinstance(self.source, View), "random numbers are in no file"
        return self.source

    def part(self, row: int, rows: int) -> "Move":
        """Consecutive rows of both sides."""
        scale = self.scale and replace(self.scale, row=self.scale.row + row)
        source, target = self.source.rows_from(row, rows), self.target.rows_from(row, rows)
        return replace(self, source=source, target=target, scale=scale)

    def turned(self) -> "Move":
        """The same elements, row by row of the target file."""
        if self.target.columns == 1 or self.target.row_step >= self.target.column_step:
            return self
        assert self.scale is None, "quantised matrices are never transposed"
        source, target = self.view.transposed(), self.target.transposed()
        return replace(self, source=source, target=target)


@dataclass(frozen=True, slots=True)
class Task:
    """Fills one range of one file."""

    file: int
    """Number in `Plan.targets`."""
    offset: int
    nbytes: int
    dtype: str
    """Type that is written."""
    moves: tuple[Move, ...] = ()
    literal: bytes = b""
    """Bytes to write, where there are no moves."""

    @property
    def end(self) -> int:
        """Where the range ends."""
        return self.offset + self.nbytes

    @property
    def is_copy(self) -> bool:
        """Whether bytes go over as they are."""
        return all(_is_copy(move, self.dtype) for move in self.moves)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a conversion will do."""

    title: str
    sources: tuple[SourceFile, ...]
    targets: tuple[TargetFile, ...]
    tasks: tuple[Task, ...]
    """By file and offset, without gaps."""
    tables: tuple[tuple[str, Callable[[], bytes]], ...]
    """Small files that are written when all tasks are done, the one that makes it valid last."""
    summary: tuple[str, ...] = field(default=())
    """What is done with which tensors, for people."""

    @property
    def nbytes(self) -> int:
        """Bytes that tasks write."""
        return sum(target.size for target in self.targets)

    @property
    def hash(self) -> str:
        """Changes when anything about the conversion does, a source's time included."""
        digest = hashlib.blake2b(digest_size=16)
        for item in (*self.sources, *self.targets, *self.tasks):
            digest.update(repr(item).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """The plan in words."""
        copied = sum(task.nbytes for task in self.tasks if task.is_copy)
        lines = [
            f"{self.title}: {len(self.sources)} file(s) read, {len(self.targets)} written, "
            f"{amount(self.nbytes)} ({copied / max(1, self.nbytes):.0%} copied unchanged)"
        ]
        lines += [f"  {target.name}  {amount(target.size)}" for target in self.targets]
        return "\n".join([*lines, *self.summary])


def fill(
    file: int, offset: int, size: tuple[int, int], dtype: str, moves: Sequence[Move]
) -> Iterator[Task]:
    """Tasks that fill a matrix which lies in a file row by row.

    Args:
        file: Number of the target file.
        offset: Of the matrix in the file.
        size: Its rows and columns.
        dtype: Type that is written.
        moves: Together they fill it exactly, or several times where they are terms of a sum.
    """
    rows, columns = size
    row_bytes = columns * dtypes.item_size(dtype)
    assert sum(move.target.elements for move in moves) % (rows * columns) == 0
    turned = sorted((move.turned() for move in moves), key=lambda move: move.target.offset)
    if all(_is_copy(move, dtype) for move in turned):
        yield from _copies(file, dtype, turned)
        return
    sums = any(move.weight is not None for move in turned)
    step = max(1, (_SUM_BYTES if sums else _TILE_BYTES) // max(1, row_bytes))
    for row in range(0, rows, step):
        count = min(step, rows - row)
        begin, nbytes = offset + row * row_bytes, count * row_bytes
        tile = turned if count == rows else _within(turned, offset, row_bytes, row, count)
        yield Task(file, begin, nbytes, dtype, tuple(tile))


def _is_copy(move: Move, dtype: str) -> bool:
    item = dtypes.item_size(dtype)
    packed = move.source.is_packed(item) and move.target.is_packed(item)
    plain = move.scale is None and move.weight is None
    return packed and plain and move.dtype == dtype


def _copies(file: int, dtype: str, moves: Sequence[Move]) -> Iterator[Task]:
    item = dtypes.item_size(dtype)
    for move in moves:
        step = max(1, _COPY_BYTES // (move.target.columns * item))
        for row in range(0, move.target.rows, step):
            part = move.part(row, min(step, move.target.rows - row))
            yield Task(file, part.target.offset, part.target.elements * item, dtype, (part,))


def _within(
    moves: Sequence[Move], offset: int, row_bytes: int, row: int, rows: int
) -> Iterator[Move]:
    """The parts of moves that lie in some rows of the matrix."""
    for move in moves:
        target = move.target
        assert target.rows == 1 or target.row_step == row_bytes, "vectors are smaller than a tile"
        first = (target.offset - offset) // row_bytes
        begin, end = max(first, row), min(first + target.rows, row + rows)
        if begin < end:
            yield move.part(begin - first, end - begin)

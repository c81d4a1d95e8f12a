"""A conversion as data: the files to write, and tasks that each fill one range of one file.

A plan is made from headers alone and contains everything that its execution needs, so that it can
be shown, hashed, stopped and resumed. It does not know what the tensors mean.
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
"""Largest range that one task copies, so that a stopped conversion loses little."""
_TILE_BYTES = 4 * 2**20
"""Largest range that one task computes; it and its sources are held in memory."""
_SUM_BYTES = 2**20
"""Largest range that one task computes as a sum, whose terms are held in float32."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read, as it was when the plan was made."""

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
        """Check that the file has not changed since the plan was made.

        Raises:
            CheckpointError: It was replaced, written or removed.
        """
        if SourceFile.of(self.path) != self:
            raise CheckpointError(
                f"{self.path} changed while it was being converted; wait until nothing writes to "
                "it and start again. The destination is unchanged."
            )


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file to write."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Scale:
    """w[i, j] = q[i, j] * view[(row + i) // block, (column + j) // block]: scales of a move."""

    view: View
    """The scale factors, F32, one for each square block of the whole matrix."""
    block: int
    """Side of a block."""
    row: int
    """Row of the whole matrix at which the move begins."""
    column: int
    """Column of the whole matrix at which the move begins."""

    def from_row(self, row: int, rows: int) -> "Scale":
        """Those of consecutive rows of the move."""
        return replace(self, row=self.row + row)


@dataclass(frozen=True, slots=True)
class Exponents:
    """w[i, j] = q[i, j] * 2^(view[i, j // 32] - 127): the powers of two of 4-bit numbers q."""

    view: View
    """The exponents (E8M0), with as many rows as the move."""

    def from_row(self, row: int, rows: int) -> "Exponents":
        """Those of consecutive rows of the move."""
        return replace(self, view=self.view.rows_from(row, rows))


@dataclass(frozen=True, slots=True)
class Move:
    """target = scale * source, element by element; with a weight, target += weight * source."""

    source: View | Noise
    dtype: str
    """Element type of the source."""
    target: View
    scale: Scale | Exponents | None = None
    weight: float | None = None
    """Weight of a term of a sum; moves with the same target are added. None if there is no sum."""

    @property
    def view(self) -> View:
        """The source, which must be in a file."""
        assert isinstance(self.source, View), "random numbers are in no file"
        return self.source

    def part(self, row: int, rows: int) -> "Move":
        """The move restricted to consecutive rows of both sides."""
        scale = self.scale and self.scale.from_row(row, rows)
        source, target = self.source.rows_from(row, rows), self.target.rows_from(row, rows)
        return replace(self, source=source, target=target, scale=scale)

    def turned(self) -> "Move":
        """The same move, transposed if necessary so that the target's rows are contiguous."""
        if self.target.columns == 1 or self.target.row_step >= self.target.column_step:
            return self
        assert self.scale is None, "quantised matrices are never transposed"
        source, target = self.view.transposed(), self.target.transposed()
        return replace(self, source=source, target=target)


@dataclass(frozen=True, slots=True)
class Task:
    """Fills one range of one file."""

    file: int
    """Index into `Plan.targets`."""
    offset: int
    nbytes: int
    dtype: str
    """Element type to write."""
    moves: tuple[Move, ...] = ()
    literal: bytes = b""
    """Bytes to write if there are no moves."""

    @property
    def end(self) -> int:
        """Offset at which the range ends."""
        return self.offset + self.nbytes

    @property
    def is_copy(self) -> bool:
        """Whether the bytes are copied unchanged."""
        return all(_is_copy(move, self.dtype) for move in self.moves)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a conversion will do."""

    title: str
    sources: tuple[SourceFile, ...]
    targets: tuple[TargetFile, ...]
    tasks: tuple[Task, ...]
    """Sorted by file and offset, without gaps."""
    tables: tuple[tuple[str, Callable[[], bytes]], ...]
    """Small files to write after all tasks; the last one makes the result valid."""
    summary: tuple[str, ...] = field(default=())
    """A readable summary of the mapping."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that the tasks write."""
        return sum(target.size for target in self.targets)

    @property
    def hash(self) -> str:
        """A hash of everything about the conversion, including the sources' modification times."""
        digest = hashlib.blake2b(digest_size=16)
        for item in (*self.sources, *self.targets, *self.tasks):
            digest.update(repr(item).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """The plan as text for people."""
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
    """Tasks that fill a matrix stored contiguously in a file.

    Args:
        file: Index of the target file.
        offset: Offset of the matrix in the file.
        size: Rows and columns of the matrix.
        dtype: Element type to write.
        moves: Moves that fill the matrix exactly, or once per term if it is a sum.
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
    """The parts of moves that lie in the rows `row` to `row + rows - 1` of the matrix."""
    for move in moves:
        target = move.target
        assert target.rows == 1 or target.row_step == row_bytes, "vectors are smaller than a tile"
        first = (target.offset - offset) // row_bytes
        begin, end = max(first, row), min(first + target.rows, row + rows)
        if begin < end:
            yield move.part(begin - first, end - begin)

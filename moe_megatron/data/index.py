"""Facts about a Megatron indexed dataset on disk, read without Megatron.

A dataset is two files: `<prefix>.bin` holds token ids back to back, `<prefix>.idx` the position of
each document. Reading and checking an index takes a tenth of a second for ten million
documents, while importing megatron.core takes seconds. The module never writes.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from moe_megatron.errors import DataError
from moe_megatron.reading import open_regular

_MAGIC = b"MMIDIDX\x00\x00"
# magic, version, dtype code, number of sequences, number of document boundaries
_HEADER = struct.Struct("<9sQBQQ")
# Megatron's codes: dtype code -> (name, bytes per token); token ids are integers.
_DTYPES = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    8: ("uint16", 2),
}

_BLOCK = 2**20
"""Sequences that are checked at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedDatasetInfo:
    """Size of a prepared dataset."""

    documents: int
    tokens: int
    dtype: str
    pieces: int | None = None
    """Of instruction data, the number of pieces, learned or not, that its samples consist of; None:
    the documents are text."""


def bin_path(prefix: Path) -> Path:
    """The token file of `prefix` (a dot in the prefix is part of its name)."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    """The index file of `prefix`."""
    return prefix.with_name(f"{prefix.name}.idx")


def is_prefix(prefix: Path) -> bool:
    """Whether both files of a prepared dataset exist.

    Raises:
        DataError: If only one of the two exists.
    """
    try:
        has_bin, has_idx = bin_path(prefix).is_file(), idx_path(prefix).is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False
    if has_bin != has_idx:
        there, missing = (".bin", ".idx") if has_bin else (".idx", ".bin")
        raise DataError(
            f"{prefix}{there} exists but {prefix}{missing} does not: the dataset is half written; "
            f"prepare it again, or delete {prefix}{there}."
        )
    return has_bin


def inspect(prefix: Path) -> IndexedDatasetInfo:
    """Count documents and tokens, and check that the two files belong together.

    Args:
        prefix: Path without `.bin` and `.idx`; both files exist.

    Raises:
        DataError: If the index is not Megatron's, describes what cannot be, or the token file is
            shorter or longer than it says.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    with _opened(index) as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise DataError(
                f"{index} is not a Megatron index (wrong header); prepare the dataset again."
            )
        _, version, code, sequences, boundaries = _HEADER.unpack(header)
        if code not in _DTYPES:
            raise DataError(f"{index} holds non-integer tokens (code {code}); prepare it again.")
        dtype, item_size = _DTYPES[code]
        size = os.fstat(file.fileno()).st_size
        whole = _HEADER.size + 12 * sequences + 8 * boundaries
        # Megatron's multimodal indices, and so instruction data, hold one more byte a sequence.
        if version != 1 or not boundaries or size not in (whole, whole + sequences):
            raise DataError(
                f"{index} has {size:,} bytes, but its header announces {sequences:,} sequences "
                f"and {boundaries:,} boundaries of documents: it is cut short or damaged; copy it "
                "again or prepare the dataset again."
            )
        expected = _end_of_sequences(file, sequences, item_size, index)
        _check_boundaries(file, sequences, boundaries, index)
    with _opened(data) as file:
        actual = os.fstat(file.fileno()).st_size
    if expected != actual:
        raise DataError(
            f"{data} has {actual:,} bytes but its index describes {expected:,}: the copy is "
            "incomplete or belongs to another index; copy both files again or prepare them again."
        )
    return IndexedDatasetInfo(
        documents=boundaries - 1,
        tokens=actual // item_size,
        dtype=dtype,
        pieces=sequences if sequences and size == whole + sequences else None,
    )


def read_tokens(prefix: Path) -> NDArray[np.integer]:
    """All token ids of a dataset, one document after the other.

    Args:
        prefix: Path without `.bin` and `.idx`; both files exist.

    Returns:
        A read-only view of the file, [tokens].

    Raises:
        DataError: As `inspect`.
    """
    return np.memmap(bin_path(prefix), dtype=inspect(prefix).dtype, mode="r")


def read_pieces(
    prefix: Path,
) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
    """The pieces of a dataset of instruction data.

    Args:
        prefix: Path without `.bin` and `.idx`; both files exist.

    Returns:
        Where each piece ends, in tokens from the start; its mode, 0 to 3, whose meaning
        `data/instructions/stored.py` knows; and the first piece of each sample, and one more for
        the end.

    Raises:
        DataError: It is no instruction data; or as `inspect`.
    """
    info = inspect(prefix)
    if info.pieces is None:
        raise DataError(f"{prefix} is text, not instruction data; prepare it with --format.")
    boundaries = info.documents + 1
    with _opened(idx_path(prefix)) as file:
        lengths = _read(file, _HEADER.size, "<i4", info.pieces)
        first = _read(file, _HEADER.size + 12 * info.pieces, "<i8", boundaries)
        modes = _read(file, _HEADER.size + 12 * info.pieces + 8 * boundaries, "<i1", info.pieces)
    if not np.isin(modes, (0, 1, 2, 3)).all() or first[0] != 0 or first[-1] != info.pieces:
        raise DataError(
            f"{idx_path(prefix)} has pieces that are neither learned nor not, or belong to no "
            "sample: it is no instruction data, or damaged; prepare it again."
        )
    return np.cumsum(lengths, dtype=np.int64), modes.astype(np.int8), first.astype(np.int64)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; copy it again or prepare the dataset again."
        ) from error


def _end_of_sequences(file: BinaryIO, sequences: int, item_size: int, index: Path) -> int:
    """Expected size of the token file: sequences lie in it one after another, without gaps."""
    end = 0
    for first in range(0, sequences, _BLOCK):
        count = min(_BLOCK, sequences - first)
        lengths = _read(file, _HEADER.size + 4 * first, "<i4", count)
        starts = _read(file, _HEADER.size + 4 * sequences + 8 * first, "<i8", count)
        ends = end + np.cumsum(lengths, dtype=np.int64) * item_size
        if lengths.min() < 0 or starts[0] != end or (starts[1:] != ends[:-1]).any():
            raise DataError(
                f"{index} says that sequences overlap, or lie apart: it is damaged; copy it again "
                "or prepare the dataset again."
            )
        end = int(ends[-1])
    return end


def _check_boundaries(file: BinaryIO, sequences: int, boundaries: int, index: Path) -> None:
    before = 0
    for first in range(0, boundaries, _BLOCK):
        count = min(_BLOCK, boundaries - first)
        found = _read(file, _HEADER.size + 12 * sequences + 8 * first, "<i8", count)
        if found[0] < before or (np.diff(found) < 0).any() or found[-1] > sequences:
            raise DataError(
                f"{index} says that documents end where no sequence does: it is damaged; copy it "
                "again or prepare the dataset again."
            )
        before = int(found[-1])


def _read(file: BinaryIO, offset: int, dtype: str, count: int) -> NDArray[np.integer]:
    file.seek(offset)
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)

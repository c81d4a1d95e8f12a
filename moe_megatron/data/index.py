"""Facts about a Megatron indexed dataset on disk, read without Megatron.

A dataset is two files: `<prefix>.bin` holds token ids back to back, `<prefix>.idx` the position of
each document. Reading the header of the index takes microseconds, while importing megatron.core
takes seconds. The module never writes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from moe_megatron.errors import DataError

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


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedDatasetInfo:
    """Size of a prepared dataset."""

    documents: int
    tokens: int
    dtype: str


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
    has_bin, has_idx = bin_path(prefix).is_file(), idx_path(prefix).is_file()
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
        DataError: If the index is not Megatron's, or the token file is shorter or longer than
            the index says.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    with index.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise DataError(
                f"{index} is not a Megatron index (wrong header); prepare the dataset again."
            )
        _, _, code, sequences, boundaries = _HEADER.unpack(header)
        if code not in _DTYPES:
            raise DataError(f"{index} holds non-integer tokens (code {code}); prepare it again.")
        dtype, item_size = _DTYPES[code]
        expected = _end_of_last_sequence(file, sequences, item_size)
    actual = data.stat().st_size
    if expected < 0:
        raise DataError(f"{index} is cut short; copy it again or prepare the dataset again.")
    if expected != actual:
        raise DataError(
            f"{data} has {actual:,} bytes but its index describes {expected:,}: the copy is "
            "incomplete or belongs to another index; copy both files again or prepare them again."
        )
    return IndexedDatasetInfo(documents=boundaries - 1, tokens=actual // item_size, dtype=dtype)


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


def _end_of_last_sequence(file: BinaryIO, sequences: int, item_size: int) -> int:
    """Expected size of the token file: start + length of the last sequence; -1 if cut short."""
    if not sequences:
        return 0
    lengths_at = _HEADER.size
    starts_at = lengths_at + 4 * sequences
    file.seek(lengths_at + 4 * (sequences - 1))
    length = file.read(4)
    file.seek(starts_at + 8 * (sequences - 1))
    start = file.read(8)
    if len(start) < 8:
        return -1
    return int(struct.unpack("<q", start)[0] + struct.unpack("<i", length)[0] * item_size)

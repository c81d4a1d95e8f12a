"""Checks the files of a history in a folder before TensorStore opens them.

TensorStore trusts what it reads: it waits for a named pipe, and ends the process if a chunk is said
to be larger than memory. So a file of another kind is refused here, and so are arrays whose chunks
no memory holds and steps that no file is there for. It decodes no chunk.
"""

import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.reading import read_json
from moe_megatron.telemetry.history.layout import TOKENS, ArrayLayout, Description

_DESCRIPTION = "zarr.json"
_MOST_DESCRIPTION_BYTES = 2**20
_MOST_CHUNK_BYTES = 2**28
"""128 times the size at which chunks are written."""
_MOST_UNMEASURED = 2**20
"""Steps after the last chunk: where nothing was measured, none is written."""


def check_files(folder: Path, description: Description | None = None) -> None:
    """Refuse a folder that would be expensive to open.

    Args:
        folder: Of the history.
        description: As read from there; None checks what it is read from.

    Raises:
        DataError: The message names the file.
    """
    _check_regular(folder)
    if description is None:
        return
    for array in description.layout.arrays():
        if (folder / array.name).is_dir():
            _check_regular(folder / array.name)
            _check_chunks(folder / array.name / _DESCRIPTION, array)
    most = _rows_on_disk(folder / TOKENS, description) + _MOST_UNMEASURED
    if description.last_step > most:
        raise DataError(
            f"{folder / _DESCRIPTION} tells of {description.last_step:,} steps, but the files hold "
            f"{most - _MOST_UNMEASURED:,}; restore the history from a copy, or move it away."
        )


def _check_regular(folder: Path) -> None:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return  # TensorStore says what is missing
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; move it away.") from error
    for entry in entries:
        with suppress(OSError):  # a file that was just replaced, or a link to nothing
            found = entry.stat()
            most = _MOST_DESCRIPTION_BYTES if entry.name == _DESCRIPTION else _MOST_CHUNK_BYTES
            if stat.S_ISDIR(found.st_mode) and entry.name != _DESCRIPTION:
                continue
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                raise DataError(
                    f"{entry.path} is no regular file, or has more than {most:,} bytes; restore "
                    "the history from a copy, or move it away."
                )


def _check_chunks(path: Path, array: ArrayLayout) -> None:
    try:
        shape = _chunk_shape(path)
    except FileNotFoundError:
        return  # TensorStore says which array is missing
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not describe an array ({error}); restore the history from a copy, or "
            "move it away."
        ) from error
    nbytes = math.prod(shape) * np.dtype(array.dtype).itemsize
    if nbytes > _MOST_CHUNK_BYTES:
        raise DataError(
            f"{path} says that a chunk has {nbytes:,} bytes, and none has more than "
            f"{_MOST_CHUNK_BYTES:,}; restore the history from a copy, or move it away."
        )


def _chunk_shape(path: Path) -> list[int]:
    shape: Any = read_json(path, _MOST_DESCRIPTION_BYTES)["chunk_grid"]["configuration"][
        "chunk_shape"
    ]
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"chunk_shape is {shape!r}"[:80])
    return shape


def _rows_on_disk(folder: Path, description: Description) -> int:
    """Up to which row there are chunks."""
    try:
        steps = _chunk_shape(folder / _DESCRIPTION)[0]
        names = [name.split(".") for name in os.listdir(folder)]
    except (IndexError, KeyError, OSError, TypeError, ValueError):
        return description.last_step  # said by whoever opens the array
    numbers = [int(name[1]) for name in names if name[0] == "c" and name[-1].isdecimal()]
    return (max(numbers, default=-1) + 1) * steps

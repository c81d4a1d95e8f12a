"""How this package reads files that somebody else may have written: bounded, and without code.

A file that lies must cost neither memory nor time: a named pipe is waited for, a device never ends,
a file of holes is as long as it likes, JSON may be nested deeper than the interpreter goes or hold
numbers and text that nothing can take. Each is an `OSError` or a `ValueError` here, as any other
unreadable file is, and the caller says which file it was and what to do. The module knows nothing
about what is stored.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 256 * 2**20
"""Of a description that is read whole; those of the largest models have some tens of megabytes."""
MOST_LINE_BYTES = 16 * 2**20
"""Of one line; a step of the largest models has less than one megabyte."""

_LONG_NUMBER = re.compile(rb"\d{19}")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LARGEST = 2**64

Hook = Callable[[list[tuple[str, Any]]], Any]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; whatever is no file (a pipe, a device, a folder) is refused.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(descriptor, "rb")  # closes the descriptor


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file that is read whole.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `most` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes, which none needs", str(path))
    return data


def leads_out(path: Path, folder: Path) -> Path | None:
    """The file elsewhere that a name in a folder is a link to; None if the file belongs there.

    In the cache of the Hub every file is a link, into the folder `blobs` of its model. A folder of
    links to one other model is that model: where `config.json` leads, others may.

    Raises:
        OSError, RuntimeError: It cannot be followed, as links in a circle.
    """
    real, here, config = path.resolve(), folder.resolve(), folder / "config.json"
    ours = [here, here.parent.parent / "blobs"]
    if config.exists() and config.resolve().name == config.name:
        ours.append(config.resolve().parent)
    return None if any(map(real.is_relative_to, ours)) else real


def read_text(path: Path, most: int = MOST_BYTES, *, errors: str = "strict") -> str:
    """As `read_bytes`, decoded from UTF-8.

    Raises:
        OSError: As `read_bytes`.
        UnicodeDecodeError: It is not UTF-8; a `ValueError`.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The JSON value in a file.

    Raises:
        OSError: As `read_bytes`.
        ValueError: As `parse_json`.
    """
    return parse_json(read_bytes(path, most))


def parse_json(text: bytes | str, hook: Hook | None = None, *, large_numbers: bool = False) -> Any:
    """Parse JSON of which every number fits into 64 bits and every string can be written again.

    Args:
        text: The JSON, in UTF-8.
        hook: As `object_pairs_hook` of `json.loads`.
        large_numbers: Whole numbers that do not fit are read as floats, as of the 10^30 that
            transformers writes for "no limit".

    Raises:
        ValueError: It is not such JSON, or is nested too deeply.
    """
    data = text.encode() if isinstance(text, str) else text
    checked = float if large_numbers else _int
    number = checked if _LONG_NUMBER.search(data) else None  # a function makes parsing slow
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=hook, parse_int=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _LONE_SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("a string in it holds half a character") from None
    return value


def _int(digits: str) -> int:
    value = int(digits)
    if abs(value) >= _LARGEST:
        raise ValueError(f"the number {digits[:20]}... does not fit into 64 bits")
    return value


def lines(file: BinaryIO, most: int = MOST_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a file, each with its newline, from the current position on.

    Raises:
        ValueError: A line has more than `most` bytes.
    """
    while line := file.readline(most + 1):
        if len(line) > most:
            raise ValueError(f"a line has more than {most:,} bytes, which none needs")
        yield line

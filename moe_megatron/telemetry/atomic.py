"""Replacing a file so that a crash leaves either the old or the new one, never a part of it.

It knows nothing about what is in the file.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes `chunks` to a file beside `path`, forces it to disk and renames it to `path`.

    `chunks` may read from `path` itself: the old file stays in place until the rename.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:  # the rename itself is durable only once its directory is
        os.fsync(directory)
    finally:
        os.close(directory)

"""The lines that are added to a file, each read once, however long the file grows.

A file that is replaced or cut, as a run that resumes does with its records, begins anew. A line
that is still being written is left for the next time. It does not know what is in a line.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.reading import MOST_LINE_BYTES, lines, open_regular

File = tuple[int, int]


class Tail:
    """Reads a file from where it was last read.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: File | None = None
        self._position = 0

    def read(self, anew: Callable[[], None], most_bytes: int = MOST_LINE_BYTES) -> Iterator[bytes]:
        """Yield the complete lines since the last call.

        Args:
            anew: Called before the first line of another file than that of the last call.
            most_bytes: Of a line.

        Raises:
            DataError: A line is longer.
        """
        try:
            file = open_regular(self._path)
        except OSError:
            return
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if self._file != identity or found.st_size < self._position:
                if self._file is not None:
                    anew()
                self._file, self._position = identity, 0
            if found.st_size == self._position:
                return
            file.seek(self._position)
            try:
                for line in lines(file, most_bytes):
                    if not line.endswith(b"\n"):
                        return
                    self._position += len(line)
                    yield line
            except ValueError as error:
                raise DataError(
                    f"{self._path}: {error}; move the file away, or cut it off at byte "
                    f"{self._position}."
                ) from error

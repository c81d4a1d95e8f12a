"""A file that grows by whole pieces: a line is in it, or nothing of the line.

A full disk takes the beginning of a line and refuses the rest; the beginning is then removed again.
That somebody has removed the file is noticed: nobody would ever read what goes on into a file
without a name. The next attempt begins a new one, if its folder is still there: that of a whole run
does not come back half filled. It does not know what a line means, nor when to try again.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path


class AppendedFile:
    """One file, opened by the first `append`.

    Args:
        path: The file; its folder is created.
        root: A folder around it that is created for the first piece, and never again; that of the
            file if it is None.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = root or path.parent
        self._begun = False
        self._descriptor = -1
        self._good_end: int | None = None  # where a piece begins that could not be removed again

    def open(self) -> None:
        """Open the file, unless it is open.

        Raises:
            OSError: It cannot be opened, or was removed since the last piece.
        """
        if self._descriptor >= 0:
            if self._is_in_place():
                return
            self.close()
            raise FileNotFoundError(errno.ENOENT, "it was removed, and a new one begins")
        if self._begun and not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"{self._root} was removed")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._begun = True

    def append(self, data: bytes) -> None:
        """Append a piece.

        Raises:
            OSError: It cannot be written, and ends where it ended before; or as `open`.
        """
        self.open()
        if self._good_end is not None:
            os.ftruncate(self._descriptor, self._good_end)
            self._good_end = None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            if written:
                self._remove_last(written)
            raise

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _remove_last(self, number: int) -> None:
        end = os.fstat(self._descriptor).st_size - number
        try:
            os.ftruncate(self._descriptor, end)
        except OSError:
            self._good_end = end

    def fileno(self) -> int:
        """The descriptor of the open file.

        Raises:
            OSError: It cannot be opened.
        """
        self.open()
        return self._descriptor

    def close(self) -> None:
        """Close it; `append` opens it again."""
        descriptor, self._descriptor, self._good_end = self._descriptor, -1, None
        if descriptor >= 0:
            with suppress(OSError):  # some network file systems tell only now that a disk is full
                os.close(descriptor)

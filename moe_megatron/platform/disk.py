"""Room on a disk. It does not know what is written."""

import errno
import os
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk that is full, or of a quota that is used up."""
_GIB = 2**30


def room_problem(folder: Path, needed: int) -> str:
    """Why so many bytes do not fit into a folder; "" if they do, or may.

    Raises:
        OSError: The folder cannot be asked.
    """
    found = os.statvfs(folder)
    if not found.f_blocks:  # some network file systems do not tell
        return ""
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    if free >= needed:
        return ""
    return (
        f"{os.strerror(errno.ENOSPC)}: {free / _GIB:.2f} GiB are free, and the checkpoint before "
        f"has {needed / _GIB:.2f} GiB"
    )


def size_of_folder(folder: Path) -> int:
    """Bytes of all files in a folder; those that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total

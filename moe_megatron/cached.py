"""Folders in the cache: built once, checked by content, and built again if damaged.

A power cut or a half-finished clean-up leaves files that are cut short, full of zeros or missing.
Each folder lists the digests of its files, so that such an entry is never used and never in the
way. The module does not know what the files mean.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from moe_megatron.files import (
    exclusive_lock,
    explained_writes,
    rename_into_place,
    working_directory,
)
from moe_megatron.reading import open_regular, read_json

_LISTING = "contents.json"
_BLOCK = 2**16
_BLOCKS = 64


def cached_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """A folder in the cache that holds what was written into it, and nothing else.

    Any number of processes may ask for it at once; what they build is the same.

    Args:
        target: The folder, whose name says what it is made of.
        build: Writes its files into a new, empty folder.

    Raises:
        DataError: The cache cannot be written.
    """
    if _is_whole(target):
        return target
    with explained_writes(target), exclusive_lock(target):
        if _is_whole(target):  # another process has built it meanwhile
            return target
        with working_directory(target) as work:
            partial = work / target.name
            partial.mkdir()
            build(partial)
            listing = json.dumps(digests(partial), indent=2)
            (partial / _LISTING).write_text(listing, encoding="utf-8")
            if not target.is_dir():
                target.unlink(missing_ok=True)
            rename_into_place(partial, target)
    return target


def digests(folder: Path) -> dict[str, str]:
    """The `sampled_digest` of each file of a folder, by name.

    Raises:
        OSError: One cannot be read, or is no regular file.
    """
    files = sorted(path for path in folder.iterdir() if path.name != _LISTING)
    return {path.name: sampled_digest(path) for path in files}


def sampled_digest(path: Path) -> str:
    """A digest that takes milliseconds, however large a file is.

    It covers the size, the beginning, the end, and blocks spread evenly over what lies between:
    what becomes of files in practice, cut short, full of zeros from some point on, or another file
    of the same size, changes it. Up to 4 MB it covers everything.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        last = max(size - _BLOCK, 0)
        for number in range(_BLOCKS):
            start = last * number // (_BLOCKS - 1) if size > _BLOCK * _BLOCKS else number * _BLOCK
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        listing = read_json(folder / _LISTING)
        return bool(listing) and listing == digests(folder)
    except (OSError, ValueError):
        return False

"""Megatron's cached indices of datasets: used only if they are what was written, of the same data.

Megatron names an index after a description of the dataset, by path and not by content, and maps
whatever file has that name: one that was cut by a full disk ends the run, one of a dataset that was
prepared again reads other samples. Here indices are in a folder of the data's own, with checksums
beside them. This module does not know what an index holds.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moe_megatron.files import exclusive_lock, explained_writes, replace_file
from moe_megatron.reading import read_json

SUMS = "sums.json"
"""Checksums of the files of a folder, by name."""
_BLOCK = 16 * 2**20
_TICK_NS = 2 * 10**9
"""Two changes of a file that are closer than this may leave the same time."""

_seen: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Checksums that this process has computed, and of which state of the file."""


def folder_of(cache: Path, prefixes: Sequence[str]) -> Path:
    """The folder for indices of these datasets as they are now.

    Indices depend on the lengths of documents, which are in the `.idx` files. All ranks find the
    same folder, also where the clocks of their file systems differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for prefix in prefixes:
        digest.update(f"{prefix}\0".encode())
        for part in _ends(Path(f"{prefix}.idx")):
            digest.update(part)
    return cache / digest.hexdigest()


def _ends(path: Path) -> Iterator[bytes]:
    """The content of a file; of a large one its size and both ends, where running sums are."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            yield str(size).encode()
            for start in sorted({0, max(0, size - _BLOCK)}):
                file.seek(start)
                yield file.read(_BLOCK)
    except OSError:
        return  # a weight, or a dataset that Megatron will miss


@contextmanager
def checked(folder: Path) -> Iterator[None]:
    """Let one process build indices in a folder, without those that are not what was written.

    Raises:
        DataError: The folder cannot be written.
    """
    with ExitStack() as stack:
        with explained_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_lock(folder / SUMS))
            known = _read(folder / SUMS)
            for path in _files(folder):
                if known.get(path.name) != _sum(path):
                    path.unlink()
        yield
        with explained_writes(folder):
            replace_file(folder / SUMS, [json.dumps(_sums(folder)).encode()])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".npy", ".txt"})


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: _sum(path) for path in _files(folder)}


def _sum(path: Path) -> str:
    """The checksum of a file, which is read once as long as it stays as it is."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if path in _seen and _seen[path][0] == state:
            return _seen[path][1]
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        checksum = f"{file.tell()}:{digest.hexdigest()}"
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _TICK_NS:
        _seen[path] = (state, checksum)
    return checksum


def _read(path: Path) -> dict[str, str]:
    """The known checksums; none if the file is missing or damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

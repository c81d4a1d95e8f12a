"""Writes the manifest of a complete folder: alone, or each rank for the files that it wrote.

Bytes are vouched for as they are read back, which is after the save: damage that happens between
the two is not noticed. Ranks meet in the folder itself, so that no collective operation is needed
and the training thread is not involved.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.integrity.blocks import blocks_of
from moe_megatron.checkpoint.integrity.check import files_of
from moe_megatron.checkpoint.integrity.manifest import MANIFEST, Block, Manifest, write_manifest
from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file
from moe_megatron.platform.disk import FULL
from moe_megatron.reading import read_json

_OF_RANK = re.compile(r"__(\d+)_\d+\.distcp")
_POLL_SECONDS = 0.05
_PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 1800.0
"""How long rank 0 waits for the checksums of other ranks."""


def seal(
    folder: Path,
    *,
    known: Mapping[str, tuple[Block, ...]] | None = None,
    without: Collection[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest of a folder.

    Args:
        folder: A complete folder.
        known: Blocks of files that need not be read again.
        without: Files that will not stay.
        notes: Stored in the manifest.

    Raises:
        OSError: A file cannot be read, or the manifest not be written.
    """
    files = dict(known or {})
    others = set(files_of(folder)) - files.keys() - set(without)
    files |= {name: blocks_of(folder / name) for name in others}
    write_manifest(folder, Manifest(files=files, notes=notes or {}))


def unseal(folder: Path) -> None:
    """Remove the manifest of a folder that is about to be written again, and what led to it."""
    for path in (folder / MANIFEST, *folder.glob(_part("*"))):
        path.unlink(missing_ok=True)


def seal_together(
    folder: Path,
    rank: int,
    world_size: int,
    *,
    notes: Mapping[str, Any] | None = None,
    patience: float = 0.0,
    hurry: threading.Event | None = None,
) -> bool:
    """Compute the checksums of this rank's files; rank 0 then writes the manifest.

    Args:
        folder: A complete checkpoint, on a file system that all ranks share.
        rank: This rank.
        world_size: Number of ranks that wrote it, each of which calls this.
        notes: Stored in the manifest, by rank 0.
        patience: For how many seconds it waits for room on a full disk.
        hurry: Ends that wait when it is set.

    Returns:
        Whether the manifest was written by this call.

    Raises:
        OSError: A file cannot be read or written.
        CheckpointError: Another rank did not finish.
    """
    room = _Room(patience, hurry or threading.Event())
    names = list(files_of(folder))
    mine = {n: blocks_of(folder / n) for n in names if _owner(n, world_size) == rank}
    if rank != 0:
        if mine:
            _hand_in(folder / _part(str(rank)), mine, room)
        return False
    for other in sorted({_owner(name, world_size) for name in names} - {0}):
        mine |= _wait_for(folder / _part(str(other)), PATIENCE_SECONDS + patience)
    manifest = Manifest(files=mine, notes=notes or {})
    room.write(lambda: write_manifest(folder, manifest))
    for path in folder.glob(_part("*")):
        path.unlink(missing_ok=True)
    return True


def _owner(name: str, world_size: int) -> int:
    """The rank that wrote a file, as torch names them; rank 0 for all that is beside tensors."""
    match = _OF_RANK.fullmatch(name)
    rank = int(match[1]) if match else 0
    return rank if rank < world_size else 0


def _part(rank: str) -> str:
    return f".checksums-{rank}.json"


def _hand_in(path: Path, mine: Mapping[str, tuple[Block, ...]], room: "_Room") -> None:
    text = json.dumps(mine).encode()
    try:
        room.write(lambda: replace_file(path, [text]))
    except OSError:
        # A disk that takes no more bytes mostly takes a name: rank 0 need not wait.
        path.touch()
        raise


class _Room:
    """Waits for room on a full disk."""

    def __init__(self, patience: float, hurry: threading.Event) -> None:
        self._patience, self._hurry = patience, hurry

    def write(self, write: Callable[[], None]) -> None:
        """Call a function that writes, again and again while the disk is full."""
        deadline = time.monotonic() + self._patience
        while True:
            is_last = self._hurry.is_set() or time.monotonic() >= deadline
            try:
                write()
                return
            except OSError as error:
                if error.errno not in FULL or is_last:
                    raise
            self._hurry.wait(_PAUSE_SECONDS)


def _wait_for(path: Path, patience: float) -> dict[str, tuple[Block, ...]]:
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{path.parent} gets no checksums: {path.name} of another rank did not appear. "
                "All ranks need to see the folder of checkpoints."
            )
        time.sleep(_POLL_SECONDS)
    try:
        return {name: _blocks(blocks) for name, blocks in read_json(path).items()}
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} of another rank holds no checksums ({error}); nothing vouches for this "
            "checkpoint. Check the disk."
        ) from error


def _blocks(pairs: Iterable[tuple[int, str]]) -> tuple[Block, ...]:
    return tuple((int(nbytes), str(digest)) for nbytes, digest in pairs)

"""`checksums.json`: sizes and checksums of all files of a folder, with a checksum of its own.

Each file is a list of blocks, one after another without gaps, so that damage is found to be within
one of them. The manifest does not know what the blocks contain.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.formats import byte_ranges
from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file
from moe_megatron.reading import parse_json, read_json

MANIFEST = "checksums.json"
_VERSION = 1
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)

Block = tuple[int, str]
"""Length and checksum of a range of bytes, which begins where the block before it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder held when it was complete."""

    files: Mapping[str, tuple[Block, ...]]
    """Blocks of each file, by its path in the folder; an empty file has none."""
    algorithm: str = byte_ranges.DEFAULT
    """Name in `byte_ranges.ALGORITHMS`."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON values about the checkpoint that others want to find without reading it."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder in one rename.

    Raises:
        OSError: It cannot be written.
    """
    body = _text(manifest)
    whole = {"digest": _checksum(body.encode(), byte_ranges.DEFAULT), "content": body}
    replace_file(folder / MANIFEST, [json.dumps(whole).encode() + b"\n"])


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none.

    Raises:
        CheckpointError: It is damaged, or needs a package that is not installed.
    """
    path = folder / MANIFEST
    try:
        whole = read_json(path)
        body, digest = str(whole["content"]), str(whole["digest"])
        content = parse_json(body)
        algorithm = str(content["algorithm"])
        if algorithm not in byte_ranges.ALGORITHMS:
            raise CheckpointError(
                f"{path} holds checksums of the kind {algorithm}, which needs a package that is "
                "not installed; pip install xxhash."
            )
        if _checksum(body.encode(), algorithm) != digest:
            raise ValueError("its own checksum does not match")
        files = {
            str(name): tuple((int(nbytes), str(block)) for nbytes, block in blocks)
            for name, blocks in content["files"].items()
        }
        if outside := [name for name in files if Path(name).is_absolute() or ".." in name]:
            raise ValueError(f"it names {outside[0]!r}, which is not in its folder")
        return Manifest(files=files, algorithm=algorithm, notes=dict(content["notes"]))
    except FileNotFoundError:
        return None
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}), so nothing vouches for this "
            "checkpoint; use another one."
        ) from None


def _text(manifest: Manifest) -> str:
    return json.dumps(
        {
            "version": _VERSION,
            "algorithm": manifest.algorithm,
            "notes": dict(manifest.notes),
            "files": {name: list(blocks) for name, blocks in sorted(manifest.files.items())},
        },
        separators=(",", ":"),
    )


def _checksum(data: bytes, algorithm: str) -> str:
    running = byte_ranges.ALGORITHMS[algorithm]()
    running.update(memoryview(data))
    return running.hexdigest()

"""Checks one folder against its manifest; ranks may each check a part of it.

valid: the manifest is there and every byte is what it says. unverified: there is no manifest, as in
checkpoints of other programs and where a save was killed before its checksums were written; sizes
agree with what the metadata describes. damaged: anything else.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.integrity.blocks import Span, changed, size_of, spans
from moe_megatron.checkpoint.integrity.manifest import MANIFEST, Manifest, read_manifest
from moe_megatron.checkpoint.integrity.tensors import tensors_in
from moe_megatron.config import CONFIG_FILE
from moe_megatron.config.checkpoint_files import METADATA, REFERENCE_FILE
from moe_megatron.errors import CheckpointError
from moe_megatron.telemetry.values.profile import PROFILE_FILE

_READ_BY_NAME = (
    "common.pt",
    CONFIG_FILE,
    PROFILE_FILE,
    "masked_experts.json",
    "recent_losses.json",
    REFERENCE_FILE,
)
"""Files that a run reads if they are there: one that was added changes the run."""

State = Literal["valid", "unverified", "damaged"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one folder."""

    folder: Path
    state: State
    problems: tuple[str, ...] = ()
    """Sentences that name the damaged files and tensors."""
    blocks: int | None = None
    """Number of checksums in the manifest; None without one."""

    @property
    def reason(self) -> str:
        """Why it is not valid, in short."""
        if self.state == "unverified":
            return f"it has no {MANIFEST}, so damage within its tensors would not be noticed"
        rest = len(self.problems) - 2
        return " ".join(self.problems[:2]) + (f" (and {rest} more)" if rest > 0 else "")


def check_folder(folder: Path, *, part: int = 0, parts: int = 1) -> Finding:
    """Check a folder.

    Args:
        folder: A checkpoint of one step, or any folder with a manifest.
        part: Which part of the bytes to read, from 0.
        parts: Among how many readers the bytes are split; structure is checked by each.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return Finding(folder, "damaged", (str(error),))
    if manifest is None:
        problems = tuple(_structure(folder))
        return Finding(folder, "damaged" if problems else "unverified", problems)
    blocks = sum(map(len, manifest.files.values()))
    problems = (*names_and_sizes(folder, manifest), *_content(folder, manifest, part, parts))
    return Finding(folder, "damaged" if problems else "valid", problems, blocks)


def looks_whole(folder: Path) -> bool:
    """Whether all files are there in their sizes, as far as can be seen without reading them."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return False
    if manifest is None:
        return (folder / METADATA).is_file()
    return not any(names_and_sizes(folder, manifest))


def _structure(folder: Path) -> Iterator[str]:
    if not (folder / METADATA).is_file():
        yield f"{folder} is incomplete: {METADATA} is missing, so its save was cut short."
        return
    try:
        TorchDist(folder).close()
    except CheckpointError as error:
        yield str(error)


def files_of(folder: Path) -> Iterator[str]:
    """The files that a manifest of the folder lists, by their paths in it.

    Left out are the manifest itself and hidden files, except Megatron's own.
    """
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory) / name
            if name == METADATA or not (name.startswith(".") or path == folder / MANIFEST):
                yield str(path.relative_to(folder))


def names_and_sizes(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Sentences about files that are missing, were added, or have another size."""
    for name, blocks in manifest.files.items():
        expected = size_of(blocks)
        try:
            size = (folder / name).stat().st_size
        except OSError:
            yield f"{folder / name} is missing."
            continue
        if size < expected:
            yield f"{folder / name} is truncated: {size:,} of {expected:,} bytes."
        elif size > expected:
            yield f"{folder / name} has grown: {size:,} bytes instead of {expected:,}."
    for name in sorted(set(_READ_BY_NAME) - set(manifest.files)):
        if (folder / name).exists():
            yield f"{folder / name} was added after the checksums were written; remove it."


def _content(folder: Path, manifest: Manifest, part: int, parts: int) -> Iterator[str]:
    every = (span for name in sorted(manifest.files) for span in spans(name, manifest.files[name]))
    mine = islice(every, part, None, parts)
    for span in _joined(changed(folder, mine, manifest.algorithm)):
        if (folder / span.file).is_file():
            tensors = tensors_in(folder, span)
            yield (
                f"{folder / span.file} is damaged between bytes {span.begin:,} and {span.end:,}"
                f"{f', in {tensors}' if tensors else ''}."
            )


def _joined(found: list[Span]) -> Iterator[Span]:
    """Neighbouring ranges as one."""
    last: Span | None = None
    for span in found:
        if last is not None and (last.file, last.end) == (span.file, span.begin):
            last = Span(last.file, last.begin, span.end, "")
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last

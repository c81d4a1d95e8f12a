"""Which checkpoint of a folder a run starts from: the newest that is valid.

A checkpoint without checksums is taken only if none has valid ones. What is found damaged on the
way is renamed beside the others, or left alone in a folder that belongs to another run; it is never
deleted. How a checkpoint is checked is up to the caller, which may be many ranks.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moe_megatron.checkpoint.integrity.check import Finding
from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.config.checkpoint_files import (
    METADATA,
    RELEASE,
    TRACKER,
    folders_by_step,
    read_tracker,
    step_of,
)
from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The checkpoint to start from."""

    found: Finding
    """Its folder, valid or unverified."""
    passed_over: tuple[Finding, ...] = ()
    """Newer ones that are not used, newest first."""


def candidates(root: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, from the one that the tracker file names on.

    All of them where that file is missing, holds no step, or names a folder that is not there.
    """
    try:
        steps = folders_by_step(root)
    except OSError:
        return []
    newest_first = [steps[step] for step in sorted(steps, reverse=True)]
    release = [root / RELEASE] if (root / RELEASE).is_dir() else []
    named = _named(root)
    if named == RELEASE and release:
        return release
    if named.isdecimal() and int(named) in steps:
        return newest_first[newest_first.index(steps[int(named)]) :]
    return newest_first + release


def _named(root: Path) -> str:
    try:
        return read_tracker(root)
    except OSError:
        return ""


def sealed(folders: Sequence[Path]) -> list[Path]:
    """Those of the folders that have a manifest."""
    return [folder for folder in folders if (folder / MANIFEST).exists()]


def choose(
    folders: Sequence[Path],
    with_checksums: Collection[Path],
    check: Callable[[Path], Finding],
    *,
    fallback: bool = True,
) -> Chosen:
    """Choose the newest valid checkpoint, or else the newest whose structure is intact.

    Args:
        folders: At least one, newest first, from `candidates`.
        with_checksums: Those of them that have a manifest, from `sealed`.
        check: As `check_folder`.
        fallback: Whether an older one may be taken than the first.

    Raises:
        CheckpointError: None can be used, or the first cannot and `fallback` is off.
    """
    found: dict[Path, Finding] = {}
    if not fallback:
        first = check(folders[0])
        if first.state == "damaged":
            raise CheckpointError(
                f"{first.folder} is damaged: {first.reason} checkpoint.fallback is off; set it to "
                "true to go on from the newest valid checkpoint before it."
            )
        return Chosen(first)
    for wanted, has_manifest in (("valid", True), ("unverified", False)):
        for folder in folders:
            if (folder in with_checksums) is not has_manifest:
                continue
            found[folder] = check(folder)
            if found[folder].state == wanted:
                newer = folders[: folders.index(folder)]
                passed = (found.get(other) or check(other) for other in newer)
                return Chosen(found[folder], tuple(passed))
    listed = "\n".join(f"  {folder.name}: {found[folder].reason}" for folder in folders)
    raise CheckpointError(
        f"{folders[0].parent} holds no checkpoint that can be used:\n{listed}\nRestore a copy of "
        "one, or start anew without --load."
    )


def set_aside(chosen: Chosen) -> None:
    """Rename damaged checkpoints of a run, and let the tracker file name the chosen one.

    Those that are merely incomplete or unverified stay: the run will write them again.
    """
    for finding in chosen.passed_over:
        folder = finding.folder
        complete = (folder / METADATA).exists() or (folder / MANIFEST).exists()
        if finding.state == "damaged" and complete:
            _attempt(partial(folder.rename, _free_name(folder)), folder)
    if _named(chosen.found.folder.parent) != _name_of(chosen.found.folder):
        _point_to(chosen.found.folder)


def repair_tracker(chosen: Chosen) -> None:
    """Let a tracker file that holds no step, which Megatron insists on, name the chosen one."""
    root = chosen.found.folder.parent
    named = _named(root)
    if (root / TRACKER).exists() and not named.isdecimal() and named != RELEASE:
        _point_to(chosen.found.folder)


def _name_of(folder: Path) -> str:
    step = step_of(folder)
    return folder.name if step is None else str(step)


def _point_to(folder: Path) -> None:
    tracker = folder.parent / TRACKER
    _attempt(lambda: replace_file(tracker, [_name_of(folder).encode()]), tracker)


def _free_name(folder: Path) -> Path:
    name, number = folder.with_name(f"{folder.name}.damaged"), 1
    while name.exists():
        number += 1
        name = folder.with_name(f"{folder.name}.damaged-{number}")
    return name


def _attempt(change: Callable[[], object], path: Path) -> None:
    try:
        change()
    except OSError as error:
        logger.warning("%s cannot be changed: %s", path, error.strerror)

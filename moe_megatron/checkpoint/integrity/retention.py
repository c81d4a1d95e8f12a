"""Which checkpoints of a run to keep, and the removal of the others.

The newest always stays, and so does the newest that looks valid. Readers see a checkpoint whole or
not at all: it is renamed to a hidden name before it is deleted.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.integrity.check import names_and_sizes
from moe_megatron.checkpoint.integrity.manifest import Manifest, read_manifest
from moe_megatron.config.checkpoint_files import METADATA, folders_by_step
from moe_megatron.errors import CheckpointError

VALIDATION_LOSS = "validation_loss"
"""Note in a manifest: the loss of the evaluation at its step."""
RANK = "rank_value"
"""Note in a manifest: what checkpoints are compared by in place of that loss; less is better."""
_LEAVING = ".{}.removing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What to keep; with all three None, everything."""

    last: int | None = None
    every: int | None = None
    best: int | None = None


def surplus(root: Path, keep: Keep, newest: int, protected: Collection[Path] = ()) -> list[Path]:
    """The checkpoints that need not be kept, oldest first. Incomplete ones are none.

    Args:
        root: Folder of the `iter_*` folders of a run.
        keep: The rule.
        newest: Step of the newest complete one; what is newer may be being written.
        protected: Folders that stay in any case.
    """
    if keep == Keep():
        return []
    steps = folders_by_step(root)
    complete = (s for s, path in steps.items() if s <= newest and (path / METADATA).is_file())
    newest_first = sorted(complete, reverse=True)
    manifests = {step: _manifest(steps[step]) for step in newest_first}
    kept = set(newest_first[: keep.last or 1])
    kept |= {step for step in newest_first if keep.every and step % keep.every == 0}
    values = {s: value for s, m in manifests.items() if m and (value := _value(m)) is not None}
    kept |= set(sorted(values, key=lambda step: (values[step], -step))[: keep.best or 0])
    kept |= set([step for step in newest_first if manifests[step]][:1])
    kept |= {step for step in newest_first if steps[step] in protected}
    return [steps[step] for step in reversed(newest_first) if step not in kept]


def _value(manifest: Manifest) -> float | None:
    """What a checkpoint is compared by; None: it was not evaluated."""
    value = manifest.notes.get(RANK, manifest.notes.get(VALIDATION_LOSS))
    return float(value) if isinstance(value, int | float) and value == value else None


def _manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder whose files have the sizes that it says."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return None
    return manifest if manifest and not any(names_and_sizes(folder, manifest)) else None


def remove(folder: Path) -> None:
    """Remove a checkpoint, out of sight first.

    Raises:
        OSError: It cannot be removed.
    """
    hidden = folder.with_name(_LEAVING.format(folder.name))
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def finish_removals(root: Path) -> None:
    """Delete what a killed removal has left."""
    for path in root.glob(_LEAVING.format("iter_*")):
        shutil.rmtree(path, ignore_errors=True)

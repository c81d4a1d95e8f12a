"""The files that make a folder a Megatron checkpoint. It reads none of them."""

import re
from pathlib import Path

CHECKPOINTS = "checkpoints"
"""In a run folder: the folder of its checkpoints."""
METADATA = ".metadata"
"""In the folder of one step: what its tensors are and where they lie."""
TRACKER = "latest_checkpointed_iteration.txt"
"""In the folder around it: the newest step."""
RELEASE = "release"
"""Name of a checkpoint that holds weights alone: training starts at step 0."""

_ITERATION = re.compile(r"iter_(\d{7,})")


def iteration_dir(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of one step."""
    return checkpoints / f"iter_{step:07d}"


def step_of(folder: Path) -> int | None:
    """The step whose checkpoint a folder is named after; None for other names."""
    match = _ITERATION.fullmatch(folder.name)
    return int(match[1]) if match else None


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether a folder is a finished Megatron checkpoint, or holds some."""
    return (path / METADATA).is_file() or (path / TRACKER).is_file()

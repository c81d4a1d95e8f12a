"""The files that make a folder a Megatron checkpoint, and the steps that their names tell."""

import re
from collections.abc import Mapping
from pathlib import Path

from moe_megatron.reading import read_text

CHECKPOINTS = "checkpoints"
"""In a run folder: the folder of its checkpoints."""
METADATA = ".metadata"
"""In the folder of one step: what its tensors are and where they lie."""
REFERENCE_FILE = "preference_reference.json"
"""In the folder of one step: with which reference a training on preferences began."""
TRACKER = "latest_checkpointed_iteration.txt"
"""In the folder around it: the newest step."""
RELEASE = "release"
"""Name of a checkpoint that holds weights alone: training starts at step 0."""

HF_FOLDER = "hf"
"""In the folder of one step: what an import keeps of the Hugging Face model beside its tensors."""
HF_CONFIG = f"{HF_FOLDER}/config.json"
"""The configuration of that model."""

_TRACKER_BYTES = 64
_ITERATION = re.compile(r"iter_(\d{7,})")


def folder_of_checkpoints(megatron: Mapping[str, object], run_dir: Path) -> Path:
    """Where a run saves its checkpoints, if it does: in its own folder, or where `--save` says.

    Args:
        megatron: The Megatron flags of its configuration.
        run_dir: Its folder.
    """
    return Path(str(megatron.get("save", run_dir / CHECKPOINTS)))


def iteration_dir(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of one step."""
    return checkpoints / f"iter_{step:07d}"


def step_of(folder: Path) -> int | None:
    """The step whose checkpoint a folder is named after; None for other names."""
    match = _ITERATION.fullmatch(folder.name)
    return int(match[1]) if match else None


def folders_by_step(checkpoints: Path) -> dict[int, Path]:
    """The checkpoints of a folder, finished or not.

    Raises:
        OSError: It cannot be listed.
    """
    named = ((step_of(path), path) for path in checkpoints.iterdir())
    return {step: path for step, path in named if step is not None}


def read_tracker(checkpoints: Path) -> str:
    """What the tracker file says: a step, or the word "release".

    Raises:
        OSError: There is none, or it cannot be one.
    """
    return read_text(checkpoints / TRACKER, _TRACKER_BYTES, errors="replace").strip()


def tracked_step(checkpoints: Path) -> int | None:
    """The step that the tracker file names; None if there is none, or it names a release."""
    try:
        return int(read_tracker(checkpoints))
    except (OSError, ValueError):  # ValueError: the word "release", or a file cut short
        return None


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether a folder is a finished Megatron checkpoint, holds some, or is that of a run."""
    folder = checkpoints_of(path)
    return (folder / METADATA).is_file() or (folder / TRACKER).is_file()


def checkpoints_of(path: Path) -> Path:
    """The folder of checkpoints in that of a run; any other folder as it is."""
    if (path / METADATA).is_file() or not (path / CHECKPOINTS / TRACKER).is_file():
        return path
    return path / CHECKPOINTS


def instead_of_model(folder: Path, wanted: str = "a Hugging Face model folder") -> str:
    """What to give in place of a folder that holds no model.

    Args:
        folder: What was given.
        wanted: What would have been one.
    """
    if not folder.is_dir():
        return "give the folder of a model, not a file"
    names = [path.name for path in folder.iterdir()]
    if "adapter_config.json" in names:
        return (
            "it holds an adapter (LoRA), which is nothing without its base model: merge both, with "
            "moe-megatron adapter merge or merge_and_unload of peft, and give the merged model"
        )
    if any(name.endswith(".gguf") for name in names):
        return "it holds a GGUF file; convert that to a Hugging Face folder first"
    if "tokenizer.json" in names:
        return "it holds a tokenizer alone; give the folder of a model"
    return f"give {wanted}"

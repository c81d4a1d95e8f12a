"""The files that make a folder a Megatron checkpoint. It reads none of them."""

from pathlib import Path

METADATA = ".metadata"
"""In the folder of one step: what its tensors are and where they lie."""
TRACKER = "latest_checkpointed_iteration.txt"
"""In the folder around it: the newest step."""


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether a folder is a finished Megatron checkpoint, or holds some."""
    return (path / METADATA).is_file() or (path / TRACKER).is_file()

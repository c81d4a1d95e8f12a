"""Writes tensors as a safetensors file that those may read who may read the files beside it.

safetensors 0.8 gives its files to their owner alone, whatever the umask says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, with the permissions of any new file or of the one that it replaces.

    Args:
        tensors: By name, each contiguous, no two in the same memory.
        path: File to write. It is not written at once: use a new or a temporary name.
        metadata: Text in the file's header.

    Raises:
        OSError: The file cannot be written.
        SafetensorError: The same, where safetensors notices it.
    """
    from safetensors.torch import save_file

    path.touch()
    permissions = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=dict(metadata or {}) or None)
    path.chmod(permissions)

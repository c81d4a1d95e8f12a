"""Whether the files of a model folder are its own, and what their names say.

A folder may have been unpacked by a stranger: a link may lead to a private file elsewhere, which a
conversion would copy and a push publish; and a clone without Git LFS holds notes in place of files.
This module knows no format.
"""

from pathlib import Path

from moe_megatron.contents import LFS_POINTER, content_of
from moe_megatron.errors import CheckpointError
from moe_megatron.files import user_path
from moe_megatron.reading import leads_out

LONGEST_NAME = 255
"""Bytes of a name; what file systems allow. Names of tensors have less than half of it."""


def given_folder(path: str | Path) -> Path:
    """A path that somebody gave, with `~` replaced.

    Raises:
        CheckpointError: No file system can have it.
    """
    folder = user_path(path)
    try:
        folder.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"'{str(path)[:60]}' ({len(str(path)):,} characters) cannot be a folder ({reason}); "
            "give the path of a checkpoint."
        ) from None
    return folder


def check_own(path: Path, folder: Path) -> None:
    """Refuse a file that is a link to somewhere else.

    Raises:
        CheckpointError: It leads to a file that is not the model's.
    """
    try:
        real = leads_out(path, folder)
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CheckpointError(f"{path} cannot be followed ({error}); remove it.") from None
    if real is not None:
        raise CheckpointError(
            f"{path} is a link to {real}, which is not in the model's folder; it would be copied. "
            "Replace the link by the file if it belongs to the model, or remove it."
        )


def check_no_pointer(path: Path, start: bytes) -> None:
    """Refuse a note of Git LFS in place of a file.

    Args:
        path: The file, for the message.
        start: Its first bytes.

    Raises:
        CheckpointError: It is such a note.
    """
    if content_of(start) == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a note of Git LFS about a file that was not fetched; run 'git lfs install' "
            "and 'git lfs pull' in its folder, or download the model with 'hf download'."
        )

"""Moves a finished staging folder to its destination, completely or not at all."""

import shutil
from pathlib import Path

from moe_megatron.checkpoint.execute.journal import FILE
from moe_megatron.errors import CheckpointError
from moe_megatron.files import flush_to_disk


def staging_of(destination: Path) -> Path:
    """The staging folder of a destination: beside it, so that one rename publishes it."""
    return destination.with_name(f".{destination.name}.partial")


def check_apart(destination: Path, source: Path) -> None:
    """Refuse a destination that has no name of its own, or would replace the source.

    Raises:
        CheckpointError: It is such a folder.
    """
    if destination.name in {"", ".", ".."}:
        raise CheckpointError(
            f"the destination '{destination}' has no name of its own; give the name of a folder to "
            "write, such as checkpoints/my_model."
        )
    there, here = destination.resolve(), source.resolve()
    if here.is_relative_to(there):
        raise CheckpointError(
            f"the destination {destination} {'is' if here == there else 'contains'} the source; "
            "choose another folder."
        )


def check_free(destination: Path, *, overwrite: bool | None = None) -> None:
    """Check that publishing would not destroy anything.

    Args:
        destination: The folder to write.
        overwrite: Whether it may be replaced; None: nobody can ask for that.

    Raises:
        CheckpointError: The destination exists and must not be replaced, or is not a folder.
    """
    _recover(destination)
    if not destination.exists():
        return
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is a file; give the name of a folder.")
    if any(destination.iterdir()) and not overwrite:
        instead = "" if overwrite is None else ", or replace it with overwrite (--overwrite)"
        raise CheckpointError(
            f"{destination} exists and is not empty; choose another folder{instead}."
        )


def publish(staging: Path, destination: Path) -> None:
    """Rename a finished staging folder to its destination, then delete the old destination."""
    (staging / FILE).unlink(missing_ok=True)
    old = _old(destination)
    if destination.exists():
        destination.rename(old)
    staging.rename(destination)
    flush_to_disk(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(destination: Path) -> None:
    """Restore the old destination if a kill came between the two renames of `publish`."""
    old = _old(destination)
    if old.exists() and not destination.exists():
        old.rename(destination)


def _old(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")

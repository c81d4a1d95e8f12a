"""Where the history of a run is stored."""

from pathlib import Path

from moe_megatron.locations import Location, parse_location

HISTORY_FOLDER = "history"
"""Folder of the history in a run folder, unless another place is configured."""


def history_location(address: str | Path) -> Location:
    """The place of a history; see `parse_location`.

    Raises:
        ConfigError: the scheme is unknown, or the bucket is missing.
    """
    return parse_location(address, "the history")


def history_address(configured: str | None, run_dir: Path | None) -> str | Path | None:
    """The address of a run's history: under the configured address, or in the run's own folder.

    Args:
        configured: folder or bucket that collects the histories of many runs, each under the name
            of its run folder; None keeps it in `run_dir`.
        run_dir: the run's folder; None for a run that writes nothing.
    """
    if run_dir is None:
        return None
    if configured is None:
        return run_dir / HISTORY_FOLDER
    return f"{configured.rstrip('/')}/{run_dir.name}"

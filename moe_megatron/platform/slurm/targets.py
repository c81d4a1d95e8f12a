"""Removes the Prometheus target of a run whose processes were killed before they could.

A target that stays makes Prometheus miss the run, which is right for a run that failed, and wrong
for one that waits in a queue.
"""

import logging
from pathlib import Path

from moe_megatron.reading import read_bytes
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE

_MOST_BYTES = 2**20

logger = logging.getLogger(__name__)


def _content(path: Path) -> bytes | None:
    """None for files of others that are no targets."""
    try:
        return read_bytes(path, _MOST_BYTES)
    except OSError:
        return None


def remove_targets(run_dir: Path, discovery: Path | None) -> None:
    """Remove the target file of a run, and its equal in the folder that Prometheus watches.

    Call it only while no process of the run lives.
    """
    own = run_dir / TARGETS_FILE
    try:
        text = read_bytes(own, _MOST_BYTES)
        copies = [] if discovery is None else sorted(discovery.glob("*.json"))
        for path in (*(copy for copy in copies if _content(copy) == text), own):
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("the target of %s was not removed: %s", run_dir, error)

"""What a new run from step 0 finds of an earlier one in its place is kept beside it."""

import logging
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)


def set_aside(path: Path) -> None:
    """Rename a file or folder of an earlier run, over the one that was set aside before.

    Args:
        path: history becomes history.old, metrics.jsonl metrics.old.jsonl.
    """
    if path.is_dir():
        old = path.with_name(f"{path.name}.old")
        if old.exists():
            shutil.rmtree(old)
    else:
        old = path.with_name(f"{path.stem}.old{path.suffix}")
    path.replace(old)
    logger.warning("%s belongs to an earlier run; it is kept as %s", path, old.name)

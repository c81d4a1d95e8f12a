"""A disk that is full for a while, under the checkpoints and under the logs."""

import os
import shutil
import time
from pathlib import Path
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim

_SECONDS = 8.0


def _needs_small_disks(victim: Victim) -> str | None:
    return None if victim.small_disks else "mounting a small disk needs root"


@harm("fill-disk", "the run's disk is full during a save", needs=_needs_small_disks)
def fill_disk(victim: Victim, random: Random) -> str:
    """Fill the disk of the run folder for some seconds."""
    return _fill(victim.run_dir)


@harm("fill-logs", "the disk under logs/ is full", needs=_needs_small_disks)
def fill_logs(victim: Victim, random: Random) -> str:
    """Fill the disk of the logs for some seconds."""
    return _fill(victim.run_dir / "logs")


def _fill(folder: Path) -> str:
    if not folder.is_dir():
        raise NothingToHitError(f"{folder.name} does not exist yet")
    filler = folder / f".filler-{os.getpid()}"
    try:
        with filler.open("wb", buffering=0) as file:
            free = shutil.disk_usage(folder).free
            try:
                os.posix_fallocate(file.fileno(), 0, free)
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass  # that is the point
        time.sleep(_SECONDS)
    finally:
        filler.unlink(missing_ok=True)
    return f"{free / 2**20:.0f} MiB taken for {_SECONDS:.0f} s"

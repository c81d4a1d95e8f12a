"""What the ranks of a run tell each other beside its collectives: RUN/heartbeats/rankN.json.

Collectives cannot tell of a rank that hangs, because they hang, too. A file in the run folder,
which all machines see, needs no server that could be the one that hangs. Nobody compares clocks: a
beat is a number that grows. It does not know when a rank is late, or what follows.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_megatron.files import publish
from moe_megatron.reading import read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """The state of one rank."""

    rank: int
    host: str
    pid: int
    started: float
    """When the process was created, by the clock of its own machine; tells it from a later one."""
    count: int
    """Beats so far; one that does not grow belongs to a process that is stopped or gone."""
    progress: int
    """Steps, evaluations and checkpoints begun or ended so far."""
    step: int
    phase: str
    waits: bool
    """Whether it waits for other ranks."""


def write_beat(folder: Path, beat: Beat) -> None:
    """Write the state of this rank; a reader sees the old or the new one."""
    publish(_file(folder, beat.rank), json.dumps(asdict(beat)))


def read_beats(folder: Path, world_size: int) -> dict[int, Beat]:
    """The states of all ranks that have written one."""
    found = {}
    for rank in range(world_size):
        try:
            found[rank] = Beat(**read_json(_file(folder, rank)))
        except (OSError, TypeError, ValueError):
            continue
    return found


def find_culprit(beats: Iterable[Beat], silent: Iterable[int]) -> Beat | None:
    """The rank for which the others wait.

    Args:
        beats: The states of all ranks, when none of them has made progress for too long.
        silent: The ranks whose beats have stopped.

    Returns:
        The first rank without a beat; else, of the ranks with the least progress, the first that
        does not wait for others; None if all of them wait.
    """
    known = sorted(beats, key=lambda beat: beat.rank)
    stopped = set(silent)
    for beat in known:
        if beat.rank in stopped:
            return beat
    least = min((beat.progress for beat in known), default=0)
    behind = [beat for beat in known if beat.progress == least]
    if len(behind) < len(known):
        # Whatever these wait for, the others have passed it.
        return next((beat for beat in behind if not beat.waits), behind[0])
    return next((beat for beat in behind if not beat.waits), None)


def claim(folder: Path) -> bool:
    """Whether this rank is the first to ask, and so is the one that tells."""
    try:
        os.close(os.open(folder / "hang", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"

"""Damage to the newest checkpoint, followed by a kill, so that the job must read it."""

import os
import signal
from pathlib import Path
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim


@harm("flip-bit", "one flipped bit in the newest checkpoint, then SIGKILL of a rank")
def flip_bit(victim: Victim, random: Random) -> str:
    """Flip one bit of one file."""
    file = _choose_file(victim, random)
    at, bit = random.randrange(file.stat().st_size), random.randrange(8)
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))
    return _then_kill(victim, file, f"bit {bit} of byte {at}")


@harm("truncate", "a file of the newest checkpoint cut short, then SIGKILL of a rank")
def truncate(victim: Victim, random: Random) -> str:
    """Cut off the end of one file."""
    file = _choose_file(victim, random)
    size = random.randrange(file.stat().st_size)
    os.truncate(file, size)
    return _then_kill(victim, file, f"cut to {size} bytes")


def _choose_file(victim: Victim, random: Random) -> Path:
    """A file of the newest sealed checkpoint; large ones are more likely.

    An older one must be left: a run whose every checkpoint is damaged is for a person to mend.
    """
    sound = victim.sound_checkpoints()
    if len(sound) < 2:
        raise NothingToHitError("there are no two sealed checkpoints yet")
    folder = sound[0]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    victim.damaged.add(folder.name)
    return random.choices(files, sizes)[0]


def _then_kill(victim: Victim, file: Path, what: str) -> str:
    for process in victim.ranks().values():
        process.send_signal(signal.SIGKILL)
        break
    return f"{file.parent.name}/{file.name}: {what}"

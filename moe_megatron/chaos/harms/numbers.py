"""Bad numbers: a gradient, and the weights of an expert."""

import time
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim, injury_file

_PATIENCE_SECONDS = 20.0


@harm("nan-gradient", "one gradient of one rank is NaN, once")
def nan_gradient(victim: Victim, random: Random) -> str:
    """Spoil one gradient."""
    return _injure(victim, random, "nan_gradient")


@harm("dying-expert", "a weight of one expert becomes NaN in memory")
def dying_expert(victim: Victim, random: Random) -> str:
    """Spoil one weight."""
    return _injure(victim, random, "dying_expert")


def _injure(victim: Victim, random: Random, injury: str) -> str:
    """Ask a rank for an injury, and wait until it has it."""
    ranks = victim.ranks()
    if not ranks:
        raise NothingToHitError("no rank is running")
    rank = random.choice(sorted(ranks))
    file = injury_file(victim.injuries, injury, rank)
    file.touch()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while file.exists():
        if time.monotonic() > deadline or victim.exit_code() is not None:
            file.unlink(missing_ok=True)
            raise NothingToHitError(f"rank {rank} makes no step")
        time.sleep(0.05)
    return f"rank {rank}"

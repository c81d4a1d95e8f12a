"""Training data that is missing for a while."""

import signal
import time
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim

_SECONDS = 6.0


@harm("lose-data", "the training data is away for some seconds while a killed job starts again")
def lose_data(victim: Victim, random: Random) -> str:
    """Move the data away, kill a rank, and bring the data back."""
    if not victim.data.is_dir():
        raise NothingToHitError("the data is not prepared yet")
    hidden = victim.data.with_name(f"{victim.data.name}.away")
    victim.data.rename(hidden)
    try:
        for process in victim.ranks().values():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(_SECONDS)
    finally:
        hidden.rename(victim.data)
    return f"{victim.data.name} for {_SECONDS:.0f} s"

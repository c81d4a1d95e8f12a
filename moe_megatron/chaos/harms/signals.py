"""Kills and stops of processes."""

import signal
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim


@harm("kill-rank", "SIGKILL of one rank, as the kernel does when memory runs out")
def kill_rank(victim: Victim, random: Random) -> str:
    """Kill one rank."""
    return _signal_a_rank(victim, random, signal.SIGKILL)


@harm("stop-rank", "SIGSTOP of one rank: it hangs, and all others with it")
def stop_rank(victim: Victim, random: Random) -> str:
    """Stop one rank without ending it."""
    return _signal_a_rank(victim, random, signal.SIGSTOP)


@harm("kill-launcher", "SIGKILL of the launcher alone")
def kill_launcher(victim: Victim, random: Random) -> str:
    """Kill the launcher, and leave the ranks to themselves."""
    victim.signal_launcher(signal.SIGKILL)
    return "launcher"


@harm("terminate-job", "SIGTERM of the job, as a batch system sends before it ends one")
def terminate_job(victim: Victim, random: Random) -> str:
    """Ask the job to end."""
    victim.signal_launcher(signal.SIGTERM)
    return "launcher"


def _signal_a_rank(victim: Victim, random: Random, signum: signal.Signals) -> str:
    ranks = victim.ranks()
    if not ranks:
        raise NothingToHitError("no rank is running")
    number, process = random.choice(sorted(ranks.items()))
    process.send_signal(signum)
    return f"rank {number}"

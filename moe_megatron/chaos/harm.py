"""What a harm is, and all harms there are.

A harm is one function that hurts a running job and says what it did. To add one, write a file in
`harms/`, or register it from anywhere before the campaign starts:

    @harm("pause", "SIGSTOP and, a second later, SIGCONT of a rank")
    def pause(victim: Victim, random: Random) -> str: ...
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from moe_megatron.chaos.victim import Victim
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError

Strike = Callable[[Victim, Random], str]
"""Hurts the job; returns what exactly it did, in a few words.

It raises `NothingToHitError` if there is nothing yet that it could hurt.
"""


class NothingToHitError(Exception):
    """There is nothing yet that this harm could hurt, such as a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """One kind of harm."""

    name: str
    meaning: str
    """What it does, for the table of a campaign."""
    strike: Strike
    needs: Callable[[Victim], str | None]
    """Why this machine or campaign cannot do it; None if it can."""


_HARMS: dict[str, Harm] = {}


def harm(
    name: str, meaning: str, *, needs: Callable[[Victim], str | None] = lambda victim: None
) -> Callable[[Strike], Strike]:
    """Register the decorated function as a harm."""

    def register(strike: Strike) -> Strike:
        assert name not in _HARMS, f"two harms are named {name}"
        _HARMS[name] = Harm(name=name, meaning=meaning, strike=strike, needs=needs)
        return strike

    return register


def find_harms(names: Sequence[str] = ()) -> list[Harm]:
    """The harms of these names; without names, all.

    Raises:
        ConfigError: There is no such harm.
    """
    from moe_megatron.chaos import harms

    for module in pkgutil.iter_modules(harms.__path__):
        importlib.import_module(f"{harms.__name__}.{module.name}")
    for name in names:
        if name not in _HARMS:
            raise ConfigError(
                f"there is no harm '{name}'.{nearest(name, _HARMS)} "
                f"Harms are: {join_words(sorted(_HARMS), 'and')}."
            )
    return [_HARMS[name] for name in names or sorted(_HARMS)]

"""A few words that name parameters of a model: "router", "experts@2-4:0,3", "*.linear_qkv.weight".

    WHAT[@LAYERS[:EXPERTS]]

WHAT is a role (`parameter_roles.ROLES`), "all", or a pattern for names with * or a dot in it.
Layers count from 1 and experts from 0, as everywhere: "2-4,7". It does not know models: what a
selector means is decided by the places of their parameters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import groupby

from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.config.parameter_roles import ROLES, ParameterPlace
from moe_megatron.errors import ConfigError

ALL = "all"
_WORDS = (ALL, *ROLES)
_NUMBERS = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")
_MOST = 100_000


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """Names parameters by what they are, and where."""

    what: str
    """A role, "all", or a pattern of names."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, from 1, in order; empty: wherever."""
    experts: tuple[int, ...] = ()
    """Numbers of routed experts, from 0, in order; empty: all."""

    @classmethod
    @cache
    def read(cls, text: str) -> "Selector":
        """Read one from text.

        Raises:
            ConfigError: It is none; the message says how one is written.
        """
        what, at, place = text.strip().partition("@")
        layers, colon, experts = place.partition(":")
        if what not in _WORDS and not ("*" in what or "." in what):
            hint = nearest(what, _WORDS) or f" Write {join_words(_WORDS)}, or a pattern of names."
            raise ConfigError(
                f"'{clipped(text)}' names no parameters: unknown word '{what}'.{hint}"
            )
        if colon and what != "experts":
            raise ConfigError(
                f"'{clipped(text)}' names single experts of '{what}', which only 'experts' have; "
                "write experts@LAYERS:EXPERTS, as in experts@2-4:0,3."
            )
        return cls(
            what,
            layers=_numbers(layers, text, least=1) if at and layers != "*" else (),
            experts=_numbers(experts, text, least=0) if colon else (),
        )

    def matches(self, place: ParameterPlace) -> bool:
        """Whether it names this parameter."""
        if self.layers and place.layer not in self.layers:
            return False
        if self.experts and place.expert not in self.experts:
            return False
        if self.what in _WORDS:
            return self.what in (ALL, place.role)
        return fnmatchcase(place.name, self.what)

    def __str__(self) -> str:
        """As `read` takes it."""
        if not self.layers and not self.experts:
            return self.what
        layers = _written(self.layers) or "*"
        return f"{self.what}@{layers}" + (f":{_written(self.experts)}" if self.experts else "")


def canonical(texts: Iterable[str]) -> tuple[str, ...]:
    """Selectors in one spelling and order, so that equal selections are equal texts.

    Raises:
        ConfigError: A text is none.
    """
    return tuple(map(str, sorted({Selector.read(text) for text in texts})))


def _numbers(text: str, whole: str, *, least: int) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(",") if _NUMBERS.fullmatch(text) else ():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found or min(found) < least or len(found) > _MOST:
        raise ConfigError(
            f"'{clipped(whole)}' has '{clipped(text)}' where numbers from {least} belong; write "
            "them as in experts@2-4:0,3, layers from 1 and experts from 0."
        )
    return tuple(sorted(found))


def _written(numbers: Sequence[int]) -> str:
    """Numbers in order, with ranges."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

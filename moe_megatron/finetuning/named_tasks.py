"""Tasks as people name them: a kind, NAME=DATA, or NAME=DATA:WEIGHT.

It knows kinds, names, sources and weights, and opens none of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.config.data import TEXT, check_names
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.format_registry import AUTOMATIC
from moe_megatron.errors import ConfigError

KINDS: Mapping[str, str] = {
    "text_generation": TEXT,
    "instructions": AUTOMATIC,
    PREFERENCES: PREFERENCES,
}
"""What can be learned, and the format of its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTask:
    """A task, its data, and its share of the mixture in any unit."""

    name: str
    data: str
    weight: float | None = None
    """None: in proportion to its tokens, or 1 where another task has a weight."""

    @classmethod
    def read(cls, text: str) -> "NamedTask":
        """Read one from text.

        Raises:
            ConfigError: It names no data, or its weight is not above 0.
        """
        name, equals, data = text.partition("=")
        rest, colon, last = data.rpartition(":")
        weight = _number(last) if colon and rest else None
        if weight is not None:
            data = rest
        if not equals or not name or not data:
            raise ConfigError(
                f"'{clipped(text)}' does not say what a task is and where its data: write "
                "NAME=DATA, or NAME=DATA:WEIGHT, as in code=my_code.jsonl:0.3; or a kind of task, "
                f"{join_words(list(KINDS))}.{nearest(text, KINDS)}"
            )
        if weight is not None and not 0 < weight < math.inf:
            raise ConfigError(
                f"the weight of the task '{clipped(name)}' ({last}) must be above 0 and finite; "
                "leave out a task that should not be trained."
            )
        return cls(name=name, data=data, weight=weight)


def fields_of(tasks: Sequence[NamedTask]) -> dict[str, Any]:
    """The fields of `data` that say it.

    Raises:
        ConfigError: Two tasks have one name, or a name is none.
    """
    check_names([it.name for it in tasks])
    weighted = any(it.weight is not None for it in tasks)
    return {
        "data.paths": [it.data for it in tasks],
        "data.tasks": [it.name for it in tasks],
        "data.weights": [it.weight or 1.0 for it in tasks] if weighted else None,
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""Whether the arguments of a training call are what they must be, before anything is done.

Notebooks pass what they have: numbers of numpy, text from a form, nan from a search. Each function
returns a plain Python value or says what was given and what is needed. It knows no argument by
name.
"""

import math
import operator
from typing import Any

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number, also of numpy or torch, of at least `least`.

    Raises:
        ConfigError: It is something else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(
            f"{name} ({shown(value)}) must be a whole number, at least {least}; try "
            f"{max(least, 8)}."
        )
    return number


def real(name: str, value: Any, *, example: float, above: bool = False) -> float:
    """A finite number of at least 0.

    Args:
        name: The argument, for the message.
        value: What was given.
        example: A sensible value, for the message.
        above: Whether 0 itself is refused.

    Raises:
        ConfigError: It is something else.
    """
    number = math.nan
    if not isinstance(value, bool | str | bytes):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number) or number < 0 or (above and number == 0):
        needed = "greater than 0" if above else "at least 0"
        raise ConfigError(f"{name} ({shown(value)}) must be a number, {needed}; try {example:g}.")
    return number


def one_of(**names: Any) -> Any:
    """The value of an argument that has several names.

    Raises:
        ConfigError: It is given under none of them, or under two.
    """
    given = {name: value for name, value in names.items() if value is not None}
    known = join_words(list(names))
    if not given:
        raise ConfigError(f"train needs text; give {known}, such as a list of strings or a path.")
    if len(given) > 1:
        raise ConfigError(f"{known} are two names for the same text, and both are given; keep one.")
    return next(iter(given.values()))


def shown(value: Any) -> str:
    """A value as a message shows it: short, and text in quotes."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

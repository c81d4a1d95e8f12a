"""Small checks that every configuration section shares, and the words their messages use.

A check names the field as the YAML file does (`model.num_layers`) and says what was given and what
is needed. It skips fields that are None: whether None is allowed depends on the field's type, which
`convert` checks. This module knows no field and no section by name.
"""

import difflib
import keyword
import re
from collections.abc import Iterable, Sequence

from moe_megatron.errors import ConfigError


def section_of(config_type: type) -> str:
    """The YAML section of a configuration class: `ModelConfig` -> "model", `RunConfig` -> "".

    A group of fields declares its own in `SECTION`.
    """
    if hasattr(config_type, "SECTION"):
        return str(config_type.SECTION)
    name = config_type.__name__.removesuffix("Config").lower()
    return "" if name == "run" else name


def qualified(config: object, field: str) -> str:
    """The name of a field as the YAML file spells it, for example "model.num_layers"."""
    section = section_of(type(config))
    return f"{section}.{field}" if section else field


def at_least(config: object, minimum: float, *fields: str) -> None:
    """Raise `ConfigError` unless each field is None or at least `minimum`."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < minimum:
            raise ConfigError(
                f"{qualified(config, field)} must be at least {minimum}, not {value}."
            )


def positive(config: object, *fields: str) -> None:
    """Raise `ConfigError` unless each field is None or greater than zero."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value <= 0:
            raise ConfigError(f"{qualified(config, field)} must be greater than 0, not {value}.")


def fraction(config: object, *fields: str) -> None:
    """Raise `ConfigError` unless each field is None or lies in [0, 1)."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not 0 <= value < 1:
            raise ConfigError(
                f"{qualified(config, field)} must be 0 or more and less than 1, not {value}."
            )


def not_empty(config: object, *fields: str) -> None:
    """Raise `ConfigError` for an empty string, an empty list or a list with an empty string."""
    for field in fields:
        value = getattr(config, field)
        if value is None:
            continue
        if not value or (isinstance(value, tuple) and "" in value):
            raise ConfigError(f"{qualified(config, field)} must not be empty.")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question to append to a message: " Did you mean 'top_k'?", or "" if nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def join_words(words: Sequence[object], last: str = "or") -> str:
    """Words as a sentence lists them: "1, 2 or 4"."""
    texts = [str(word) for word in words]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {last} {texts[-1]}"


def divisors(number: int) -> list[int]:
    """All divisors of a positive whole number, smallest first."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def clipped(text: str, most: int = 200) -> str:
    """A text as a message shows it: its beginning if somebody gave pages of it."""
    return text if len(text) <= most else f"{text[:most]}..."


def in_one_line(text: str) -> str:
    """A text of Python's on one line, without places in memory, which say nothing to a person."""
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", text).split())


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list that may be long: "a, b, c and 2 more"."""
    shown = ", ".join(map(clipped, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def is_identifier(word: str) -> bool:
    """Whether a word can name a field in YAML and an argument in Python."""
    return word.isidentifier() and not keyword.iskeyword(word)

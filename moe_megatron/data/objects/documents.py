"""Values that must be texts, one by one: the end of every way by which an object is read.

A value that is none is named with its place and what to do about it. It does not know what kind of
object the values come from.
"""

from collections.abc import Callable, Iterable
from typing import Any

from moe_megatron.data.objects.kinds import Ask
from moe_megatron.data.shards import InMemory
from moe_megatron.errors import DataError

MOST_CHARACTERS = 2**32
"""Of all texts together; what holds more, or never ends, belongs into files."""

_IDS = (
    "token ids are not read: give the text, or the prefix of an indexed dataset (moe-megatron data "
    "prepare)"
)
_MISSING = "leave missing values out first, as df.dropna() does"
_REMEDIES = {
    "int": _IDS,
    "bool": "turn it into text, or leave it out",
    "float": f"numbers are not text; if it is nan, {_MISSING}",
    "NoneType": _MISSING,
    "NAType": _MISSING,
    "NaTType": _MISSING,
    "bytes": 'decode it first, with .decode("utf-8")',
    "bytearray": 'decode it first, with .decode("utf-8")',
    "list": "give one flat list of strings; conversations and lists of token ids are not read",
    "tuple": "give one flat list of strings",
    "dict": "give the name of the key that holds the text as text_key",
}


def documents(
    values: Iterable[Any], ask: Ask, place: Callable[[int], str] | None = None
) -> tuple[InMemory]:
    """Texts that are already in memory, as one source.

    Args:
        values: Must all be strings.
        ask: What is asked.
        place: Names the value of a number, from 0; by default as an item of a list.

    Raises:
        DataError: A value is no text, there is none, or they do not end.
    """
    named = place or (lambda number: f"{ask.name}[{number}]")
    texts: list[str] = []
    characters = 0
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise _wrong(named(number), value)
        texts.append(value)
        characters += len(value)
        if characters > MOST_CHARACTERS:
            raise DataError(
                f"{ask.name} has given more than {MOST_CHARACTERS:,} characters and goes on; take "
                "a part of it (itertools.islice), or write it to .jsonl files and give their "
                "folder."
            )
    if not any(text and not text.isspace() for text in texts):
        raise DataError(f"{ask.name} holds no text; give at least one string that is not empty.")
    return (InMemory(texts=tuple(texts)),)


def _wrong(place: str, value: object) -> DataError:
    kind = type(value).__name__
    family = next((name for name in _REMEDIES if name in kind), kind)
    remedy = _REMEDIES.get(family, "turn it into a string first")
    return DataError(f"{place} is {kind}; every item must be text. To mend it, {remedy}.")

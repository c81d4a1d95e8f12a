"""The kinds of objects that hold text, and which of them an object is.

It knows no kind: each registers a test and a reader. The last one registered is asked first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.data.shards import Source
from moe_megatron.errors import DataError

ACCEPTED = (
    "a list of strings, a DataFrame, a dataset, or the path of a file or folder (docs/data.md "
    "lists them all)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What is asked of an object."""

    name: str = "train_data"
    """How the caller calls it, for messages."""
    text_key: str = "text"
    """Column or key that holds the text."""


Test = Callable[[Any], bool]
Reader = Callable[[Any, Ask], tuple[Source, ...]]
_KINDS: list[tuple[Test, Reader]] = []


def reads(test: Test) -> Callable[[Reader], Reader]:
    """Register a reader for the objects that pass a test.

    Args:
        test: Whether an object is of this kind; it must neither change nor read it.

    Returns:
        A decorator for a function of an object and an `Ask`, which gives sources for
        `prepare_dataset` or raises `DataError`.
    """

    def register(reader: Reader) -> Reader:
        _KINDS.insert(0, (test, reader))
        return reader

    return register


def wanted_column(columns: Sequence[Any], ask: Ask, of: str = "column") -> str:
    """The column that is asked for, if there is one of that name.

    Args:
        columns: Names of those that there are.
        ask: What is asked.
        of: What messages call a column.

    Raises:
        DataError: There is none.
    """
    if ask.text_key not in columns:
        names = ", ".join(map(str, columns)) or "nothing"
        raise DataError(
            f"{ask.name} has no {of} {ask.text_key!r}, but {names}; set text_key to the one that "
            "holds the text."
        )
    return ask.text_key


def source_of(given: Any, ask: Ask) -> tuple[Source, ...]:
    """The text in an object, as sources for `prepare_dataset`.

    Raises:
        DataError: It holds no text, or nothing that can be read as text.
    """
    for test, reader in _KINDS:
        if test(given):
            return reader(given, ask)
    raise DataError(f"{ask.name} is {type(given).__name__}; give {ACCEPTED}.")

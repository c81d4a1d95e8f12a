"""Which formats of instruction data there are, and which of them some rows are in.

It knows no format: each registers a test of one row and a reader.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.checks import nearest
from moe_megatron.config.own_code import load_code, names_code
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Preference
from moe_megatron.errors import DataError

AUTOMATIC = "instructions"
"""Stands for the format that the first rows show."""

Row = Mapping[str, Any]
Reader = Callable[[Row], Conversation | Preference]


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionFormat:
    """A registered format."""

    name: str
    meaning: str
    """Which fields it has, in a few words."""
    fits: Callable[[Row], bool]
    """Whether a row has the fields of this format."""
    read: Reader


_FORMATS: dict[str, InstructionFormat] = {}


def instruction_format(
    name: str, meaning: str, fits: Callable[[Row], bool]
) -> Callable[[Reader], Reader]:
    """Register a format.

    Args:
        name: What `--format` and `data.format` call it.
        meaning: Its fields, in a few words, for messages.
        fits: Whether a row is in this format; it looks at field names, and is true of no row of
            another format.

    Returns:
        A decorator of the reader: from a row to a `Conversation` or a `Preference`, or
        `BadSampleError`.
    """

    def register(reader: Reader) -> Reader:
        _FORMATS[name] = InstructionFormat(name=name, meaning=meaning, fits=fits, read=reader)
        return reader

    return register


def format_names() -> tuple[str, ...]:
    """The names of all registered formats."""
    return tuple(_FORMATS)


def reader_named(name: str) -> Reader:
    """The reader of a format, or of a file of one's own.

    Args:
        name: A registered name, or "path/to/file.py:function".

    Raises:
        ConfigError: The file cannot be loaded.
        DataError: There is no such format.
    """
    if names_code(name):
        code = load_code(name, "format")
        if not callable(code.found):
            raise DataError(
                f"the format {code.place} is a {type(code.found).__name__}, not a function; give "
                "one from a row (a mapping) to a Conversation or a Preference."
            )
        return _own_reader(code.found)
    if name not in _FORMATS:
        raise DataError(
            f"there is no format of instruction data called {name!r}.{nearest(name, _FORMATS)} "
            f"There are {_listed()}; or {AUTOMATIC}, which looks at the first rows, or a "
            "function of your own: my_format.py:read."
        )
    return _FORMATS[name].read


def _own_reader(function: Any) -> Reader:
    """A function of a user's own, whose errors are told by their kind: they may quote the row."""

    def read(row: Row) -> Conversation | Preference:
        try:
            found = function(row)
        except BadSampleError:
            raise
        except Exception as error:  # what a function of a user's own raises
            raise BadSampleError(f"the format raises {type(error).__name__}") from error
        if not isinstance(found, Conversation | Preference):
            raise BadSampleError(f"the format gives {type(found).__name__}, not a Conversation")
        return found

    return read


def check_pairs_given(rows: Sequence[Row], where: str) -> None:
    """Refuse conversations where pairs of answers are asked for.

    Args:
        rows: The first rows of the data, as they were read.
        where: What they are of, for messages.

    Raises:
        DataError: None is a pair, and all are conversations.
    """
    for it in _FORMATS.values():
        if it.name != PREFERENCES and all(map(it.fits, rows)):
            raise DataError(
                f"{where} holds conversations ({it.name}) with one answer each, and preferences "
                "are learned from pairs: rows with prompt, chosen and rejected. Give such rows, "
                f"or learn the answers: --task {AUTOMATIC} of moe-megatron finetune, data.format: "
                f"{AUTOMATIC}, or the task {AUTOMATIC!r} of FineTuner."
            )


def recognised(rows: Sequence[Row], where: str) -> str:
    """The name of the format of conversations that rows are in; pairs of answers are named.

    Args:
        rows: The first rows of the data, as they were read.
        where: What they are of, for messages.

    Raises:
        DataError: None, or several.
    """
    votes = {
        name: sum(map(it.fits, rows)) for name, it in _FORMATS.items() if any(map(it.fits, rows))
    }
    if votes.pop(PREFERENCES, 0) and not votes:
        raise DataError(
            f"{where} holds pairs of a chosen and a rejected answer, which are learned in another "
            f"way than conversations; say so: --task {PREFERENCES} of moe-megatron finetune, "
            f"--format {PREFERENCES} of moe-megatron data, data.format: {PREFERENCES}, or the task "
            f"{PREFERENCES!r} of FineTuner."
        )
    fields = ", ".join(map(repr, list(rows[0])[:8])) if rows else "nothing"
    if not votes:
        raise DataError(
            f"{where} is in no known format of instruction data (its fields: {fields}). There are "
            f"{_listed()}. Name one with data.format (--format of moe-megatron data), or give a "
            "function of your own: my_format.py:read."
        )
    if len(votes) > 1:
        found = " and ".join(f"{name} ({count} rows)" for name, count in votes.items())
        raise DataError(
            f"the first {len(rows)} rows of {where} are in several formats, {found}; name the one "
            "that is meant with data.format (--format of moe-megatron data)."
        )
    return next(iter(votes))


def _listed() -> str:
    return "; ".join(f"{it.name} ({it.meaning})" for it in _FORMATS.values())

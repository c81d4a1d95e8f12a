"""Conversations in memory: objects that hold rows, as sources for the reader of conversations.

Tables, datasets and lists of dictionaries give their rows whole; a path or a hub id stays a place.
Which fields a row has, and what they mean, the formats of `data/instructions` know.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from moe_megatron.data.instructions.samples import held
from moe_megatron.data.objects.documents import MOST_CHARACTERS
from moe_megatron.data.objects.hugging_face import is_dataset, is_dictionary, only_split, saved_copy
from moe_megatron.data.objects.kinds import Ask, source_of
from moe_megatron.data.shards import InMemory, Source
from moe_megatron.errors import DataError


def row_sources(given: Any, ask: Ask) -> tuple[Source, ...]:
    """The rows of an object, as sources for `prepare_dataset`.

    Args:
        given: A list of dictionaries, a DataFrame, a dataset, a path, ...
        ask: How the caller calls it.

    Raises:
        DataError: It holds no rows.
    """
    if isinstance(given, str | Path) or hasattr(given, "__fspath__"):
        return source_of(given, ask)
    if is_dictionary(given):
        return row_sources(only_split(given, ask), ask)
    if is_dataset(given) and hasattr(given, "save_to_disk") and len(given):
        return (saved_copy(given, "rows"),)
    rows = iter(_rows(given, ask))
    first = list(islice(rows, 1))
    if first and isinstance(first[0], Path):
        return source_of([*first, *rows], ask)
    return (InMemory(texts=tuple(_held(chain(first, rows), ask))),)


def _rows(given: Any, ask: Ask) -> Iterable[Any]:
    if isinstance(given, Mapping):
        return _of_columns(given, ask)
    for method in ("to_dicts", "to_pylist"):  # of polars, of Arrow
        if hasattr(given, method):
            return getattr(given, method)()  # type: ignore[no-any-return]
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # of pandas
        return given.to_dict("records")  # type: ignore[no-any-return]
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | set | frozenset):
        return given
    raise DataError(
        f"{ask.name} is {type(given).__name__}; give a list of dictionaries, a DataFrame, a "
        "dataset, or the path of a file or folder."
    )


def _of_columns(given: Mapping[Any, Any], ask: Ask) -> Iterator[dict[Any, Any]]:
    """The rows of a dictionary of columns."""
    single = next((key for key, it in given.items() if isinstance(it, str | Mapping)), None)
    columns = [] if single is not None else [list(column) for column in given.values()]
    if single is not None or len({len(column) for column in columns}) > 1:
        raise DataError(
            f"{ask.name} is a dictionary, but not of columns of one length; give a list of "
            f"conversations: [{ask.name}], if it is one."
        )
    return (dict(zip(given, row, strict=True)) for row in zip(*columns, strict=True))


def _held(rows: Iterable[Any], ask: Ask) -> Iterator[str]:
    characters = 0
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{ask.name}[{number}] is {type(row).__name__}, not a dictionary; with data_format "
                "every item is one conversation, such as {'prompt': ..., 'completion': ...}."
            )
        try:
            text = held(row)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{ask.name}[{number}] holds a value that is no text, number, list or dictionary; "
                "turn it into one of these first."
            ) from error
        characters += len(text)
        if characters > MOST_CHARACTERS:
            raise DataError(
                f"{ask.name} has given more than {MOST_CHARACTERS:,} characters and goes on; take "
                "a part of it, or write it to .jsonl files and give their folder."
            )
        yield text
    if not characters:
        raise DataError(f"{ask.name} holds no conversation; give at least one.")

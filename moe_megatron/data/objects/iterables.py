"""Lists, tuples, generators and other iterables: of strings, of rows, or of paths."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from moe_megatron.data.objects.documents import documents
from moe_megatron.data.objects.kinds import Ask, reads
from moe_megatron.data.shards import Source
from moe_megatron.errors import DataError

_FEW = 1000


@reads(lambda given: isinstance(given, Iterable))
def read_iterable(given: Any, ask: Ask) -> tuple[Source, ...]:
    """Every string is a document, every dictionary a row, every `Path` a file or folder.

    Raises:
        DataError: It holds something else, has no order, or holds the names of files.
    """
    if isinstance(given, set | frozenset):
        raise DataError(
            f"{ask.name} is a {type(given).__name__}, which has no order, so two runs would "
            f"differ; give sorted({ask.name})."
        )
    items = iter(given)
    first = list(islice(items, 1))
    if first and isinstance(first[0], Path):
        paths = [*first, *items]
        if not all(isinstance(path, Path) for path in paths):
            raise DataError(f"{ask.name} holds paths and other things; give one or the other.")
        return tuple(paths)
    if first and isinstance(first[0], Mapping):
        return documents(_column(chain(first, items), ask), ask)
    (texts,) = found = documents(chain(first, items), ask)
    if len(texts.texts) < _FEW and all(map(os.path.isfile, texts.texts)):
        raise DataError(
            f"{ask.name} is a list of texts, and each of them is the name of a file; to read the "
            f"files give paths, [Path(name) for name in {ask.name}], or their folder."
        )
    return found


@reads(lambda given: isinstance(given, bytes | bytearray | memoryview))
def refuse_bytes(given: Any, ask: Ask) -> tuple[Source, ...]:
    """Bytes have an encoding that nobody but their owner knows."""
    raise DataError(
        f"{ask.name} is {type(given).__name__}, not text; decode it and put it into a list: "
        f'[{ask.name}.decode("utf-8")].'
    )


@reads(lambda given: hasattr(given, "read") and hasattr(given, "readline"))
def refuse_open_file(given: Any, ask: Ask) -> tuple[Source, ...]:
    """Its lines are not its documents."""
    raise DataError(
        f"{ask.name} is an open file; give its path, or its text in a list: [{ask.name}.read()]."
    )


def _column(rows: Iterable[Any], ask: Ask) -> Iterator[Any]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or ask.text_key not in row:
            keys = ", ".join(map(repr, islice(row, 5))) if isinstance(row, Mapping) else ""
            raise DataError(
                f"{ask.name}[{number}] is a {type(row).__name__} without {ask.text_key!r} (keys: "
                f"{keys or 'none'}); set text_key to the key that holds the text, or, of "
                "conversations, data_format='instructions' (task='instructions' of FineTuner)."
            )
        yield row[ask.text_key]

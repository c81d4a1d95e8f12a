"""Reads the rows of one shard whole, and makes a sample of each: `ShardReader` for conversations.

A row that gives no sample is counted as a malformed line is, with its file, its number and what is
wrong with it, and never with what it says.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.format_registry import (
    AUTOMATIC,
    check_pairs_given,
    recognised,
)
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.instructions.turns import BadSampleError
from moe_megatron.data.readers import Problem, ShardReader
from moe_megatron.data.shards import Shard, SourceFile, plan_parts
from moe_megatron.errors import DataError

_FIRST_ROWS = 100


class RowReader(ShardReader):
    """Iterates over the rows of a shard, as mappings."""

    def _taken(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return Problem(f"a {type(value).__name__}, not an object with fields")
        return value

    def _picked(self, record: dict[str, Any]) -> Any:
        return record

    def _columns(self, there: list[str]) -> list[str]:
        return there

    def _of_rows(self, rows: list[dict[str, Any]]) -> list[Any]:
        return rows

    def _advice(self) -> str:
        return "its format (data.format, --format of moe-megatron data) and the chat template"

    def _whole_text(self) -> str:
        raise DataError(
            f"{self.shard.path} is a text, which has no turns; conversations are read from .jsonl "
            "(.gz, .zst), .parquet and datasets."
        )

    def _held_texts(self) -> Iterator[Any]:
        return map(self._parse, map(str.encode, super()._held_texts()))


class SampleReader(RowReader):
    """Iterates over the samples of a shard.

    Args:
        shard: The shard to read.
        encoder: Makes a sample of a row.
        all_may_be_bad: Do not stop when the first thousand rows are all malformed.
    """

    def __init__(self, shard: Shard, encoder: ChatEncoder, *, all_may_be_bad: bool = False):
        super().__init__(shard, all_may_be_bad=all_may_be_bad)
        self._encoder = encoder

    def _taken(self, value: Any) -> Any:
        row = super()._taken(value)
        if isinstance(row, Problem):
            return row
        try:
            return self._encoder.encode(row)
        except BadSampleError as problem:
            return Problem(problem)


def format_of(name: str, files: Sequence[SourceFile]) -> str:
    """The name of a format, or that of what the first rows of some files are in.

    Args:
        name: A format, or `AUTOMATIC`.
        files: What is to be read.

    Raises:
        DataError: No known format, or several; conversations in place of pairs of answers; or
            nothing can be read.
    """
    if name not in (AUTOMATIC, PREFERENCES):
        return name
    shards = [shard for part in plan_parts(files, 1) for shard in part]
    rows = (row for shard in shards for row in RowReader(shard))
    first = list(islice(rows, _FIRST_ROWS))
    where = shards[0].path if shards else "the data"
    if not first:
        raise DataError(
            f"{where} holds no row that can be read; check that it is JSONL or a table."
        )
    if name == PREFERENCES:
        check_pairs_given(first, where)
        return name
    return recognised(first, where)


def held(row: Mapping[str, Any]) -> str:
    """A row in memory as the text that `RowReader` reads it from."""
    return json.dumps(row, default=_plain)


def _plain(value: Any) -> Any:
    """What tables hold in place of lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no value of JSON")

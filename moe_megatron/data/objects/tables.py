"""Tables: DataFrames of pandas and polars, Arrow tables, and dictionaries of columns.

The column `text_key` is the text; a table without it is refused with the names of its columns.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.data.objects.documents import documents
from moe_megatron.data.objects.kinds import Ask, reads, source_of, wanted_column
from moe_megatron.data.shards import Source
from moe_megatron.errors import DataError


@reads(lambda given: isinstance(given, Mapping))
def read_columns(given: Mapping[Any, Any], ask: Ask) -> tuple[Source, ...]:
    """A dictionary of columns.

    Raises:
        DataError: It lacks the column, or the column is no text.
    """
    column = given[wanted_column(list(given), ask, of="key")]
    if isinstance(column, str):
        raise DataError(
            f"{ask.name}[{ask.text_key!r}] is one text; give a list of texts: "
            f"[{ask.name}[{ask.text_key!r}]]."
        )
    return source_of(column, Ask(name=f"{ask.name}[{ask.text_key!r}]", text_key=ask.text_key))


@reads(lambda given: hasattr(given, "column_names") and hasattr(given, "column"))
def read_arrow(given: Any, ask: Ask) -> tuple[Source, ...]:
    """An Arrow table, or a batch of one."""
    column = given.column(wanted_column(given.column_names, ask))
    return documents(column.to_pylist(), ask, _row(ask))


@reads(lambda given: hasattr(given, "columns") and hasattr(given, "to_dict"))
def read_frame(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A DataFrame of pandas."""
    column = given[wanted_column(list(given.columns), ask)]
    if not hasattr(column, "to_list"):
        raise DataError(
            f"{ask.name} has several columns called {ask.text_key!r}; give one of them alone."
        )
    return documents(column.to_list(), ask, _row(ask))


@reads(lambda given: hasattr(given, "get_column") and hasattr(given, "columns"))
def read_polars(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A DataFrame of polars."""
    column = given.get_column(wanted_column(given.columns, ask))
    return documents(column.to_list(), ask, _row(ask))


@reads(lambda given: hasattr(type(given), "columns") and _is_lazy(type(given)))
def refuse_lazy(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A query has no rows yet."""
    verb = "collect" if hasattr(given, "collect") else "compute"
    raise DataError(
        f"{ask.name} is a {type(given).__name__}, which has not been computed yet; give "
        f"{ask.name}.{verb}()."
    )


def _is_lazy(kind: type) -> bool:
    """Told by the class: to ask a query for its columns may start it."""
    return hasattr(kind, "collect") or hasattr(kind, "compute")


def _row(ask: Ask) -> Any:
    return lambda number: f"row {number} of column {ask.text_key!r} of {ask.name}"

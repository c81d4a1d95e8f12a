"""One column of text: a Series of pandas or polars, an array of numpy or Arrow."""

from typing import Any

from moe_megatron.data.objects.documents import documents
from moe_megatron.data.objects.kinds import Ask, reads
from moe_megatron.data.shards import Source
from moe_megatron.errors import DataError

_NUMBERS = "biufc"
"""Kinds of numpy's types that are numbers."""


@reads(lambda given: hasattr(given, "to_pylist"))
def read_arrow_array(given: Any, ask: Ask) -> tuple[Source, ...]:
    """An Arrow array, in one piece or many.

    Raises:
        DataError: A value is missing or no text.
    """
    return documents(given.to_pylist(), ask)


@reads(lambda given: hasattr(given, "dtype") and hasattr(given, "tolist"))
def read_array(given: Any, ask: Ask) -> tuple[Source, ...]:
    """An array with one dimension, such as a numpy array; of numbers, it is refused.

    Raises:
        DataError: It has another number of dimensions, or a value is no text.
    """
    dimensions = len(given.shape)
    number = getattr(given.dtype, "kind", "b" if "torch" in str(given.dtype) else "O") in _NUMBERS
    if number:
        raise DataError(
            f"{ask.name} is an array of {given.dtype}, which is no text; token ids are not read: "
            "give the text, or the prefix of an indexed dataset (moe-megatron data prepare)."
        )
    if dimensions != 1:
        raise DataError(
            f"{ask.name} is an array of {dimensions} dimensions; give one column of text, such as "
            f"{ask.name}.ravel() or {ask.name}[:, 0]."
        )
    return documents(given.tolist(), ask)


@reads(lambda given: hasattr(given, "to_list") and hasattr(given, "dtype"))
def read_series(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A Series or an index.

    Raises:
        DataError: A value is missing or no text.
    """
    return documents(given.to_list(), ask)

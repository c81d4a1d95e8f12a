"""Reads the fields of a row: text, lists and JSON. What is wrong with one is said without it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.data.instructions.turns import BadSampleError


def text_of(row: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    """The text of a field.

    Args:
        row: The row.
        key: The field.
        optional: Whether it may be missing or null; it is then "".

    Raises:
        BadSampleError: It is no text.
    """
    value = row.get(key)
    if value is None and optional:
        return ""
    if key not in row:
        raise BadSampleError(f"no field {key!r}")
    if not isinstance(value, str):
        raise BadSampleError(f"{key!r} is {type(value).__name__}, not text")
    return encodable(value, key)


def encodable(text: str, key: str) -> str:
    """The text, if it is Unicode.

    Raises:
        BadSampleError: It holds half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadSampleError(f"{key!r} holds half a surrogate pair, which is no text") from None
    return text


def rows_of(row: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The mappings in a field that holds a list of them.

    Raises:
        BadSampleError: It holds something else, or nothing.
    """
    value = row.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadSampleError(f"{key!r} is {type(value).__name__}, not a list")
    if not value:
        raise BadSampleError(f"{key!r} is empty")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            raise BadSampleError(
                f"item {number} of {key!r} is {type(item).__name__}, not an object"
            )
    return value


def json_of(value: Any, key: str) -> Any:
    """A value that may be given as JSON in a text, as tables have to.

    Raises:
        BadSampleError: The text is no JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadSampleError(f"{key!r} is text that is no JSON") from None


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The schemas of tools, in `tools` or, as they once were called, `functions`.

    Raises:
        BadSampleError: They are no list of objects.
    """
    key = "tools" if row.get("tools") is not None else "functions"
    given = json_of(row.get(key), key)
    if not given:
        return ()
    tools = rows_of({key: given}, key)
    if key == "functions":
        return tuple({"type": "function", "function": tool} for tool in tools)
    return tuple(_without_nulls(tool) for tool in tools)


def _without_nulls(value: Any) -> Any:
    """Tables fill in null where rows have different keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without keys whose value is null, at any depth."""
    return dict(_without_nulls(row))

"""Strict reading of values from parsed JSON, and floats that JSON has no number for.

Every function either returns exactly the type it promises or raises a `DataError` that names the
field, its value and what was needed. It does not know files or line numbers: readers add those.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SHOWN = 60  # characters of a wrong value that an error message shows


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def require_fields(
    data: object, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns `data` when it is an object with exactly the fields `names`, or `optional` ones, too.

    Raises:
        DataError: it is not a JSON object, or fields are missing or unknown.
    """
    if not isinstance(data, dict):
        raise DataError(f"expected a JSON object, got {_shown(data)}")
    missing = [name for name in names if name not in data]
    unknown = [name for name in data if name not in names and name not in optional]
    if missing:
        raise DataError(f"missing field(s): {', '.join(missing)}")
    if unknown:
        raise DataError(f"unknown field(s): {', '.join(unknown)}; known: {', '.join(names)}")
    return data


def read_object(value: object, name: str) -> dict[str, Any]:
    """Returns `value` when it is a JSON object, whatever its fields."""
    if not isinstance(value, dict):
        raise DataError(f"{name} must be an object, got {_shown(value)}")
    return value


def read_int(value: object, name: str, *, minimum: int = 0) -> int:
    """Returns `value` as an int of at least `minimum`; true, 1.0 and "1" are all rejected."""
    if type(value) is not int or value < minimum:
        raise DataError(f"{name} must be an integer >= {minimum}, got {_shown(value)}")
    return value


def read_bool(value: object, name: str) -> bool:
    """Returns `value` when it is true or false."""
    if not isinstance(value, bool):
        raise DataError(f"{name} must be true or false, got {_shown(value)}")
    return value


def read_str(value: object, name: str) -> str:
    """Returns `value` when it is a string."""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, got {_shown(value)}")
    return value


def read_strings(value: object, name: str) -> list[str]:
    """Returns `value` when it is a list of distinct strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{name} must be a list of strings, got {_shown(value)}")
    if len(set(value)) < len(value):
        raise DataError(f"{name} must be distinct, got {_shown(value)}")
    return value


def write_float(value: float | None) -> float | str | None:
    """Encodes one float: JSON has no NaN or infinity, so those become "nan", "inf", "-inf"."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def read_float(value: object, name: str) -> float:
    """The inverse of `write_float` for a field that must hold a number."""
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f'{name} must be a number or "nan", "inf", "-inf", got {_shown(value)}')
    return float(value)


def read_optional_float(value: object, name: str) -> float | None:
    """The inverse of `write_float` for a field where null means "not known"."""
    return None if value is None else read_float(value, name)


def write_float_array(values: Float64Array) -> list[float | str | None]:
    """Encodes a vector; NaN becomes null (a layer without a value), infinities stay strings."""
    return [None if math.isnan(value) else write_float(value) for value in values.tolist()]


def read_float_array(value: object, name: str) -> Float64Array:
    """The inverse of `write_float_array`."""
    if not isinstance(value, list):
        raise DataError(f"{name} must be a list of numbers, got {_shown(value)}")
    numbers = [math.nan if item is None else read_float(item, name) for item in value]
    return np.array(numbers, dtype=np.float64)


def read_int_array(value: object, name: str, *, ndim: int) -> Int64Array:
    """Returns a (nested) list of integers as int64.

    The check uses numpy's inferred type, not each item: a large model has 15,000 counts per line,
    and a report reads 100,000 lines.
    """
    try:
        array = np.array(value)
    except ValueError:  # ragged rows
        array = np.array(None)
    if array.ndim != ndim or array.dtype != np.int64:
        kind = "a list of integers" if ndim == 1 else "a list of equally long lists of integers"
        raise DataError(f"{name} must be {kind}, got {_shown(value)}")
    return array.astype(np.int64)

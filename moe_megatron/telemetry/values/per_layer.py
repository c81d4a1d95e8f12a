"""Named values of every MoE layer: the extensible part of a step's record.

`catalog` decides which names a run has. A file that another program wrote may hold names that this
process does not know; they are kept like all others.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moe_megatron.telemetry.values.json_fields import (
    Float64Array,
    read_float_array,
    read_object,
    write_float_array,
)

COUNT_NAMES = ("tokens", "tokens_per_expert", "assigned", "dropped")
"""Names of the exact counts that every record has in addition to these values."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")  # also the name of a folder in a history


def find_name_problem(name: str) -> str | None:
    """Says why a quantity cannot have this name; None if it can."""
    if not _NAME.fullmatch(name):
        return (
            f"{name!r} cannot name a quantity: a name begins with a lower-case letter, followed by "
            "lower-case letters, digits and underscores, at most 40 characters in all"
        )
    if name in COUNT_NAMES:
        return f"{name!r} cannot name a quantity: it is the name of a count that every step has"
    return None


class PerLayer(Mapping[str, Float64Array]):
    """Read-only copies of the values of quantities, float64 [L] each, by name."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Float64Array]) -> None:
        self._values = {name: array.copy() for name, array in values.items()}
        for array in self._values.values():
            array.flags.writeable = False

    def __getitem__(self, name: str) -> Float64Array:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"PerLayer({self._values!r})"


def find_values_problem(values: Mapping[str, Float64Array], num_layers: int) -> str | None:
    """Says which name or array does not fit `PerLayer`; None if all do."""
    for name, array in values.items():
        if problem := find_name_problem(name):
            return problem
        if array.dtype != "float64" or array.shape != (num_layers,):
            return f"{name} must be float64 [{num_layers}], got {array.dtype} {array.shape}"
    return None


def write_per_layer(values: Mapping[str, Float64Array]) -> dict[str, Any]:
    """Returns the JSON object: lists of numbers by name."""
    return {name: write_float_array(array) for name, array in values.items()}


def read_per_layer(value: object, field: str) -> dict[str, Float64Array]:
    """The inverse of `write_per_layer`, whatever the names.

    Raises:
        DataError: it is not an object, or a value in it is not a list of numbers.
    """
    return {
        name: read_float_array(numbers, f"{field}.{name}")
        for name, numbers in read_object(value, field).items()
    }

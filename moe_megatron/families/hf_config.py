"""Checked reading of values from a Hugging Face configuration, which may hold anything."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.config.checks import clipped
from moe_megatron.errors import MappingError

HfConfig = Mapping[str, Any]
_LARGEST = 2**31
_SHOWN = 60


def shown(value: object, *, quoted: bool = True) -> str:
    """A value as a message shows it: as Python writes it, or its text alone, and never long."""
    return clipped(repr(value) if quoted else str(value), _SHOWN)


def read_float(config: HfConfig, key: str, default: float | None = None) -> float:
    """Read a finite number; a missing or null key gives the default.

    Raises:
        MappingError: It is missing and has no default, or is not a finite number.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise MappingError(
                f"config.json of a {shown(config.get('model_type'), quoted=False)} model lacks "
                f"'{key}'; add it, or take the config.json that belongs to the weights."
            )
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise MappingError(f"config.json gives {key} as {shown(value)}; a number is needed.")
    return value


def read_int(config: HfConfig, key: str, default: int | None = None) -> int:
    """Read a whole number of at least 0; a missing or null key gives the default.

    Raises:
        MappingError: It is missing and has no default, or is not such a number.
    """
    value = read_float(config, key, default)
    if value % 1 or not 0 <= value < _LARGEST:
        raise MappingError(
            f"config.json gives {key} as {shown(value)}; a whole number of 0 or more is needed"
            f"{f', and less than {_LARGEST:,}' if value >= _LARGEST else ''}."
        )
    return int(value)


def read_list(config: HfConfig, key: str) -> Sequence[Any]:
    """Read a list; a missing or null key gives an empty one.

    Raises:
        MappingError: It is not a list.
    """
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise MappingError(f"config.json gives {key} as {shown(value)}; a list is needed.")
    return value

"""Reading values of a Hugging Face configuration, which may hold anything."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.errors import MappingError

HfConfig = Mapping[str, Any]
_LARGEST = 2**31


def real(config: HfConfig, key: str, default: float | None = None) -> float:
    """A finite number; the default where the key is missing or null.

    Raises:
        MappingError: It is missing and has no default, or is no finite number.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise MappingError(
                f"config.json of a {config.get('model_type')} model lacks '{key}'; add it, or take "
                "the config.json that belongs to the weights."
            )
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise MappingError(f"config.json gives {key} as {value!r}; a number is needed.")
    return value


def whole(config: HfConfig, key: str, default: int | None = None) -> int:
    """A whole number of 0 or more; the default where the key is missing or null.

    Raises:
        MappingError: It is missing and has no default, or is no such number.
    """
    value = real(config, key, default)
    if value % 1 or not 0 <= value < _LARGEST:
        raise MappingError(
            f"config.json gives {key} as {value!r}; a whole number of 0 or more is needed."
        )
    return int(value)


def listed(config: HfConfig, key: str) -> Sequence[Any]:
    """A list; an empty one where the key is missing or null.

    Raises:
        MappingError: It is something else.
    """
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise MappingError(f"config.json gives {key} as {value!r}; a list is needed.")
    return value

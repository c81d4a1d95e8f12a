"""Functions of Megatron's modules that try ours first.

It knows neither what they compute nor which modules they are of.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any


def try_first(module: ModuleType, *functions: Callable[..., Any]) -> None:
    """Put each function before the one of its name, which is called where ours returns None.

    Args:
        module: Changed in place.
        functions: With the names and arguments of functions of the module.
    """
    for ours in functions:
        name = ours.__name__
        setattr(module, name, _with_fallback(ours, getattr(module, name)))


def _with_fallback(ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        result = ours(*args, **kwargs)
        return original(*args, **kwargs) if result is None else result

    return function

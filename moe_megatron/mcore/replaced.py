"""Puts something of ours in the place of a function of Megatron, for as long as a context is open.

It does not know what is replaced, nor why.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(place: Any, name: str, by: Any) -> Iterator[None]:
    """Replace an attribute of a module or class, and put back afterwards what was there.

    Args:
        place: The module or class.
        name: The attribute.
        by: What stands there meanwhile.
    """
    original = getattr(place, name)
    setattr(place, name, by)
    try:
        yield
    finally:
        setattr(place, name, original)

"""Imports much in less time: a fifth of importing Megatron is Python looking for garbage.

Collections visit all objects that there are, again and again while modules make a million more, and
find nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage for as long as the context is open."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

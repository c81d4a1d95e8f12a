"""Makes many objects in less time: without looking for garbage meanwhile.

Collections visit all objects that there are, again and again while modules or plans make many more,
and find nothing: a fifth of importing Megatron, half of planning the conversion of a large model.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage for as long as the context is open; it can also be a decorator."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

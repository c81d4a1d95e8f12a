"""Keeps freed memory in the process, for the next step to reuse.

glibc returns every large block to the system when it is freed, only to request it again, zeroed
page by page, a moment later. A training step allocates the same large tensors again and again:
measured on the demonstration model, an elementwise operation on the logits spent three quarters of
its time in page faults. What is freed once, and not for the next step, goes back by a call of its
own. This module knows nothing about torch or Megatron.
"""

import contextlib
import ctypes

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the allocator keep freed memory, for the rest of the process.

    Returns:
        Whether that succeeded; C libraries other than glibc have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def give_back_freed_memory() -> None:
    """Return to the system what is free now; without glibc nothing happens."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)

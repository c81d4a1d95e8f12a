"""Keeps the root logger of the process as it was: it belongs to whoever calls, such as a notebook.

Importing Megatron's loop puts a handler on it, which prints what every library logs at INFO, and a
run may change its level.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from megatron.training.log_handler import CustomHandler


def forget_import() -> None:
    """Take away the handler and the level that importing `megatron.training` has set."""
    root = logging.getLogger()
    for handler in [it for it in root.handlers if isinstance(it, CustomHandler)]:
        root.removeHandler(handler)
        root.setLevel(logging.WARNING)


@contextmanager
def root_logger_kept() -> Iterator[None]:
    """Restore level and handlers when the context closes."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers

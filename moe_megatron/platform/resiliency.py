"""nvidia-resiliency-ext, which is an optional package: whether it is here, and how to install it.

It imports nothing of it, and does not know what it is used for.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_megatron.errors import BackendUnavailableError

INSTALL = "uv pip install --python-platform x86_64-manylinux_2_39 nvidia-resiliency-ext==0.6.0"
"""Its wheels are marked for glibc 2.39, which only their profiler of GPU kernels needs."""


def require_resiliency(purpose: str) -> None:
    """Check that the package can be imported.

    Args:
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    try:
        found = importlib.util.find_spec("nvidia_resiliency_ext") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise BackendUnavailableError(
            f"{purpose} needs nvidia-resiliency-ext, which is not installed here. Install it with: "
            f"{INSTALL}"
        )


@contextmanager
def messages_to(log: Path, origin: str = "") -> Iterator[None]:
    """Append what the package says to a file, and to nothing else, while the context is open.

    Args:
        log: The file; its folder is made.
        origin: What stands before each message, with a space at its end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {origin}%(levelname)s %(message)s"))
    logger = logging.getLogger("nvrx")
    logger.addHandler(handler)  # the package sets up one of its own only where there is none
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        handler.close()

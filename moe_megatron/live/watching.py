"""Whether somebody watches what this process shows."""

import sys


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")  # a kernel has loaded it
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def is_watched() -> bool:
    """Whether a bar would move before somebody's eyes."""
    return in_notebook() or sys.stderr.isatty()

"""Shows the progress of a conversion: a bar on a terminal and in a notebook, else lines."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moe_megatron.live.watching import is_watched

_SECONDS_BETWEEN_LINES = 30.0

Advance = Callable[[int], None]
"""Called from any thread with the number of bytes just finished."""


def amount(nbytes: float) -> str:
    """A readable number of bytes, such as 1.25 GB or 517.8 MB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


@contextmanager
def show_progress(label: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Display progress on stderr while the block runs.

    Args:
        label: Description of the work.
        total: Total number of bytes.
        enabled: False shows nothing.

    Yields:
        The function to call with the bytes of each finished part.
    """
    if not enabled:
        yield lambda nbytes: None
    elif is_watched():
        with _bar(label, total) as advance:
            yield advance
    else:
        lines = _Lines(label, total)
        yield lines.advance
        lines.show()


@contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    from moe_megatron.live.bar import live_bar  # loads rich, which few processes need

    with live_bar(label, total) as change:
        yield lambda nbytes: change(advance=nbytes)


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = 0
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
                self._shown = time.monotonic()
                self.show()

    def show(self) -> None:
        seconds = max(1e-9, time.monotonic() - self._started)
        print(
            f"{self._label}: {amount(self._done)} of {amount(self._total)}, {seconds:.1f} s,"
            f" {self._done / 1e9 / seconds:.2f} GB/s",
            file=sys.stderr,
            flush=True,
        )

"""Shows the progress of a long preparation: a bar on a terminal and in a notebook, else lines.

Everything goes to stderr, so that the output of a command stays clean. It knows bytes and
documents, but not what is done with them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moe_megatron.live.watching import is_watched

ReportProgress = Callable[[int, int], None]
"""Called with the bytes and the documents done so far."""

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def show_progress(
    label: str, total_bytes: int, *, enabled: bool = True
) -> Iterator[ReportProgress]:
    """Display progress while the block runs.

    Args:
        label: Description of the work, such as "tokenising wiki".
        total_bytes: Expected number of bytes; 0 if unknown (a stream).
        enabled: False shows nothing.

    Yields:
        The function to call with (bytes, documents) done so far.
    """
    if not enabled:
        yield lambda done, documents: None
    elif is_watched():
        with _bar(label, total_bytes) as report:
            yield report
    else:
        with _lines(label, total_bytes) as report:
            yield report


@contextmanager
def _bar(label: str, total_bytes: int) -> Iterator[ReportProgress]:
    from moe_megatron.live.bar import live_bar  # loads rich, which few processes need

    facts = "{task.fields[documents]:,} documents"
    with live_bar(label, total_bytes or None, facts, documents=0) as change:
        yield lambda done, documents: change(completed=done, documents=documents)


@contextmanager
def _lines(label: str, total_bytes: int) -> Iterator[ReportProgress]:
    started = time.monotonic()
    last_line = started
    of_total = f" of {total_bytes / 1e6:.1f}" if total_bytes else ""
    latest = (0, 0)

    def print_line() -> None:
        done, documents = latest
        seconds = time.monotonic() - started
        print(
            f"{label}: {done / 1e6:.1f}{of_total} MB, {documents:,} documents, {seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    def report(done: int, documents: int) -> None:
        nonlocal last_line, latest
        latest = (done, documents)
        if time.monotonic() - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print_line()

    yield report
    print_line()

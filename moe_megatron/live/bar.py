"""A bar that moves: on a terminal's stderr, or below a notebook's cell.

Work that is done at once shows none. The bar does not know what is done, nor what to show where
nobody watches.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from moe_megatron.live.notebook import NotebookDrawing
from moe_megatron.live.watching import in_notebook

PATIENCE_SECONDS = 0.5
"""Work that takes less shows no bar."""
_REFRESH_SECONDS = 0.25

Change = Callable[..., None]
"""Called from any thread with what `rich.progress.Progress.update` takes."""


@contextmanager
def live_bar(
    label: str, total: int | None, facts: str = "", *, of_bytes: bool = True, **fields: Any
) -> Iterator[Change]:
    """Show a bar while the block runs.

    Args:
        label: Description of the work.
        total: Number of bytes, or of what is counted; None if unknown.
        of_bytes: Whether bytes are counted; else pieces of work.
        facts: What stands beside the bar, such as "{task.fields[documents]:,} documents".
        fields: The first values of what it shows.

    Yields:
        The function to call with what has changed.
    """
    notebook = in_notebook()
    console = Console(stderr=True, force_jupyter=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)),
        *([TextColumn(facts)] if facts else []),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, auto_refresh=not notebook)
    task = progress.add_task(label, total=total, **fields)
    drawing, lock = NotebookDrawing(), threading.Lock()
    due = time.monotonic() + PATIENCE_SECONDS
    shown = False

    def change(**changes: Any) -> None:
        nonlocal due, shown
        with lock:
            progress.update(task, **changes)
            if time.monotonic() < due:
                return
            due, shown = time.monotonic() + _REFRESH_SECONDS, True
            if notebook:
                drawing.draw(progress.get_renderable())
            else:
                progress.start()

    try:
        yield change
    finally:
        if shown and notebook:
            drawing.draw(progress.get_renderable())
        elif shown:
            progress.stop()

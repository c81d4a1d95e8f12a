"""Looks after a claimed run folder while a job runs: shows that its owner lives, and notices loss.

A folder that another job has taken must not be written any more, whatever this job is doing: the
process ends at once. A folder that was removed is reported once, and the ranks stop by themselves.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moe_megatron.errors import EXIT_CODE
from moe_megatron.run.owner import Claim, release

_SECONDS = 5.0


@contextmanager
def holding(ours: Claim) -> Iterator[Claim]:
    """Keep a claim alive for as long as the context is open, and release it at its end."""
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=[ours, done], name="run-folder", daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        done.set()
        thread.join()
        release(ours)


def _beat(ours: Claim, done: threading.Event) -> None:
    while not done.wait(_SECONDS):
        if (loss := ours.lost) is None:
            ours.refresh()
            continue
        print(f"error: {loss}.", file=sys.stderr, flush=True)
        if ours.run_dir.exists():
            os._exit(EXIT_CODE)
        return

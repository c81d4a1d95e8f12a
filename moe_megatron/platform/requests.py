"""What somebody may ask of a run while it trains, as files in its folder: RUN/asked/checkpoint.

The folder RUN/asked is there while a run listens, so that nobody asks one that does not. A file
needs no server, and whoever may write the run folder may ask. It does not know what is done.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

Request = Literal["checkpoint", "stop"]
REQUESTS: tuple[Request, ...] = get_args(Request)
ASKED = "asked"

_LOOKS_SECONDS = 1.0

logger = logging.getLogger(__name__)


def ask(run_dir: Path, what: Request) -> None:
    """Ask a run for something; asked twice before it is taken up, it is done once.

    Raises:
        FileNotFoundError: The run does not listen.
        OSError: The folder cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    os.close(os.open(run_dir / ASKED / what, flags, 0o644))


def take(run_dir: Path) -> list[Request]:
    """What was asked since the last call; it is no longer asked then.

    Raises:
        OSError: The folder cannot be read or written.
    """
    folder = run_dir / ASKED
    there = set(os.listdir(folder))
    found: list[Request] = [it for it in REQUESTS if it in there]
    for what in found:
        (folder / what).unlink()
    return found


@contextmanager
def listening(run_dir: Path, told: Callable[[Request], None]) -> Iterator[None]:
    """Listen for as long as the context is open; what was asked before it is forgotten.

    A folder that cannot be written is no reason to end a run: it cannot be asked, then.

    Args:
        run_dir: Folder of the run.
        told: Called with each request, on a thread of its own.
    """
    folder, done = run_dir / ASKED, threading.Event()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        logger.warning("the run cannot be asked for anything: %s: %s", folder, error.strerror)
        yield
        return
    thread = threading.Thread(target=_listen, args=[run_dir, told, done], name="asked", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        shutil.rmtree(folder, ignore_errors=True)


def _listen(run_dir: Path, told: Callable[[Request], None], done: threading.Event) -> None:
    while not done.wait(_LOOKS_SECONDS):
        try:
            found = take(run_dir)
        except OSError:  # moved away, or a disk that does not answer now
            continue
        for what in found:
            told(what)

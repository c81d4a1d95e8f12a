"""Asks models, one of which is in memory: another one, or a pause, puts an end to it.

A few may wait for it; whoever comes then is told so, and no thread of the server is held up for
nothing. It does not know where models come from.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.webapp.inspector.model_process import ModelProcess

MOST_CHARACTERS = 20_000
_COMMAND = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how long what is waited for, in seconds.

    Attributes:
        loading: until a model that is not in memory has answered.
        answering: until one that is has.
        idle: until one that nobody asks is ended.
        waiting: how many may wait for an answer.
    """

    loading: float = 300.0
    answering: float = 60.0
    idle: float = 600.0
    waiting: int = 3


def command_of(folder: Path) -> list[str]:
    """The command that loads the model in a folder."""
    return [sys.executable, "-m", _COMMAND, "inspect", str(folder), "--tokens"]


class AsksModels(Protocol):
    """What the server asks: an `Inspector`, or one in another process."""

    def ask(self, folder: Path, text: str) -> dict[str, Any]:
        """As `Inspector.ask`."""

    def close(self) -> None:
        """As `Inspector.close`."""


class Inspector:
    """Knows the ways of a text's tokens through any model.

    Args:
        command: Gives the command of a folder's model.
        patience: For how long what is waited for.
    """

    def __init__(
        self,
        command: Callable[[Path], Sequence[str]] = command_of,
        patience: Patience | None = None,
    ) -> None:
        self._command = command
        self._patience = patience or Patience()
        self._waiting = threading.BoundedSemaphore(self._patience.waiting)
        self._lock = threading.Lock()
        self._loaded: tuple[Path, int] | None = None
        self._process: ModelProcess | None = None
        self._pause: threading.Timer | None = None
        self._closed = False

    @property
    def process(self) -> ModelProcess | None:
        """The process with the model in memory; None while there is none."""
        return self._process

    def ask(self, folder: Path, text: str) -> dict[str, Any]:
        """The fields of `TokenPaths` of a text.

        Args:
            folder: Of a checkpoint or a model.
            text: The text.

        Raises:
            DataError: The text is empty or too long, or the model cannot be loaded.
            BackendUnavailableError: Too many wait already, or the model does not answer.
        """
        if not 0 < len(text) <= MOST_CHARACTERS:
            raise DataError(
                f"a text must have 1 to {MOST_CHARACTERS:,} characters, and this has "
                f"{len(text):,}; give another one."
            )
        if not self._waiting.acquire(blocking=False):
            raise BackendUnavailableError(
                "the model is busy with texts of others; ask again in a moment."
            )
        try:
            with self._lock:
                answer = self._ask(folder, text)
        finally:
            self._waiting.release()
        if "error" in answer:
            raise DataError(str(answer["error"]))
        return answer

    def _ask(self, folder: Path, text: str) -> dict[str, Any]:
        if self._closed:
            raise BackendUnavailableError("the dashboard is ending; start it again to ask.")
        self._stop_pause()
        wanted = folder, folder.stat().st_mtime_ns  # a step may be saved again
        process = self._process
        if process is not None and process.runs and self._loaded == wanted:
            seconds = self._patience.answering
        else:
            self._end_process()
            process, seconds = ModelProcess(self._command(folder)), self._patience.loading
            self._process, self._loaded = process, wanted
        try:
            return process.ask(text, seconds)
        finally:
            self._pause = threading.Timer(self._patience.idle, self._end_unused)
            self._pause.daemon = True
            self._pause.start()

    def _end_unused(self) -> None:
        if self._lock.acquire(blocking=False):  # else somebody asks just now
            try:
                self._end_process()
            finally:
                self._lock.release()

    def _stop_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def close(self) -> None:
        """End the model's process, whoever waits for it, and start none again; from any thread."""
        self._closed = True
        self._end_process()

    def _end_process(self) -> None:
        self._stop_pause()
        process, self._process = self._process, None
        if process is not None:
            process.close()

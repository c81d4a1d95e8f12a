"""What a training prints, to whom it may concern: nobody's output ends a run.

The reader of a pipe goes away (`| head`), the disk of a redirection is full: print would raise, and
so would Python once more when the process exits. It does not know what is printed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from moe_megatron.telemetry.sinks.health import SinkHealth


class LastingOutput:
    """Stands for a stream such as `sys.stdout`; `write` and `flush` never raise.

    Args:
        stream: The stream, which gives everything else.
        health: Is told while it cannot be written; a reader that has gone is no failure.
    """

    def __init__(self, stream: Any, health: SinkHealth) -> None:
        self._stream = stream
        self._health = health

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self._failed(error)
            self._health.dropped("console")
        return len(text)

    def flush(self) -> None:
        """Hand everything to the operating system, if it takes it."""
        try:
            self._stream.flush()
        except ValueError:  # it is closed: there is nothing left to hand over
            return
        except OSError as error:
            self._failed(error)
        else:
            self._health.restored("console")

    def _failed(self, error: Exception) -> None:
        if isinstance(error, BrokenPipeError):
            self.give_up()
        else:
            self._health.failed("console", getattr(error, "strerror", None) or str(error))

    def give_up(self) -> None:
        """From now on into nothing, also what Python still holds when the process exits."""
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def end(self) -> None:
        """Write what is left, or leave it."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.give_up()


@contextmanager
def lasting_output(health: SinkHealth | None = None) -> Iterator[None]:
    """Let no output of this process end it, for as long as the context is open."""
    health = health or SinkHealth()
    previous = sys.stdout, sys.stderr
    ours = [LastingOutput(stream, health) for stream in previous]
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        sys.stdout, sys.stderr = previous
        for output in ours:
            output.end()

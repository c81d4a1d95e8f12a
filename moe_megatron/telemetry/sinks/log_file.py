"""A text stream into a file that never raises: for output of code that a full disk must not end.

While the file cannot be written, lines wait in memory up to a bound and are then dropped and
counted; when it can again, the waiting ones are written, and how many are missing. It does not know
whose output it is.
"""

import io
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from moe_megatron.telemetry.sinks.appended_file import AppendedFile
from moe_megatron.telemetry.sinks.backoff import Backoff
from moe_megatron.telemetry.sinks.health import SinkHealth

WAITING_BYTES = 1 << 20


def _text_gap(lines: int) -> str:
    return f"[{lines} lines are missing here]"


class LogFile(io.TextIOBase):
    """The stream; a line is written when it is complete.

    Args:
        path: The file; its folder is created, also if it is removed. That around it is not.
        name: Of the sink, for `health`.
        health: Is told of outages.
        bound: Bytes that wait while the file cannot be written.
        gap: Makes the line that stands for a number of dropped ones.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        health: SinkHealth,
        *,
        bound: int = WAITING_BYTES,
        gap: Callable[[int], str] = _text_gap,
    ) -> None:
        self._file = AppendedFile(path, path.parent.parent)
        self._name = name
        self._health = health
        self._bound = bound
        self._gap = gap
        self._backoff = Backoff()
        # Reentrant: a logging handler that writes here logs that it cannot.
        self._lock = threading.RLock()
        self._line = ""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._missing = 0
        self._problem: str | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the file."""
        return "utf-8"

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor, for programs that inherit it; what they write is not looked after."""
        return self._file.fileno()

    def write(self, text: str) -> int:
        """Take text; it is written with the end of its line."""
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._take(line)
            problem = self._problem if self._backoff.waiting else self._write_waiting()
        self._tell(problem)
        return len(text)

    def close(self) -> None:
        """Write what waits, also a last line without an end, and close the file."""
        with self._lock:
            if self.closed:
                return
            if self._line:
                self._take(self._line)
            problem = self._write_waiting()
            lost = len(self._waiting)
            self._waiting.clear()
            self._file.close()
            super().close()
        self._health.dropped(self._name, lost)
        self._tell(problem)

    def _take(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        if self._waiting_bytes + len(data) > self._bound and self._waiting:
            self._missing += 1
            self._health.dropped(self._name)
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    def _write_waiting(self) -> str | None:
        """Write what waits; returns what prevents it, or None."""
        self._problem = None
        try:
            while self._waiting:
                self._file.append(self._waiting[0])
                self._waiting_bytes -= len(self._waiting.popleft())
            if self._missing:
                self._file.append(f"{self._gap(self._missing)}\n".encode())
                self._missing = 0
        except OSError as error:
            self._problem = error.strerror or str(error)
            self._backoff.failed()
        else:
            self._backoff.worked()
        return self._problem

    def _tell(self, problem: str | None) -> None:
        # Without the lock: what is told is logged, by handlers that have locks of their own.
        if problem is None:
            self._health.restored(self._name)
        else:
            self._health.failed(self._name, problem)

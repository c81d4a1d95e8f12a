"""What happened to a run beside its steps, in words, and the end of its log, each read once.

Events are numbered from 1 in the order of the journal; the newest `MOST_EVENTS` are kept. What the
log says is shown as it is, without the codes of a terminal; no text of training data is in it.
"""

import os
import re
from collections import deque
from pathlib import Path
from typing import Any, Literal

from moe_megatron.errors import AGAIN
from moe_megatron.reading import open_regular
from moe_megatron.telemetry.journal import Event, JournalReader
from moe_megatron.telemetry.uptime.attempts import Attempts, what_happened

MOST_EVENTS = 10_000
_MOST_LOG_BYTES = 2**16
_FIRST_LOG_BYTES = 2**14
_LOGS = ("rank0.log", "launcher.log")
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")

Level = Literal["info", "warning", "error"]

_LEVELS: dict[str, Level] = {
    "rank_died": "error",
    "hang": "error",
    "save_failed": "error",
    "sink_failed": "warning",
    "set_aside": "warning",
    "skipped": "warning",
    "rolled_back": "warning",
    "masked": "warning",
    "restarting": "warning",
    "stopping": "warning",
}
_TAKES_BACK = frozenset({"attempt", "resumed", "rolled_back"})


class RunEvents:
    """The journal of a run, followed.

    Args:
        run_dir: Its folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._journal = JournalReader(run_dir)
        self._kept: deque[tuple[int, Event]] = deque(maxlen=MOST_EVENTS)
        self.attempts = Attempts()
        self.last = 0
        """Number of the newest event."""

    def refresh(self) -> bool:
        """Read new events; returns whether one of them may have taken steps back.

        Raises:
            DataError: The journal is damaged.
        """
        found = list(self._journal.new())
        self.attempts.read(found)
        for event in found:
            self.last += 1
            self._kept.append((self.last, event))
        return any(event.kind in _TAKES_BACK for event in found)

    def after(self, number: int, most: int = 500) -> list[dict[str, Any]]:
        """The events after one of them, oldest first; of more than `most` the newest."""
        found = [described(seq, event) for seq, event in self._kept if seq > number]
        return found[-most:]


def described(number: int, event: Event) -> dict[str, Any]:
    """An event as JSON."""
    level: Level = _LEVELS.get(event.kind, "info")
    if event.kind == "ended" and event.fields.get("code") not in (None, 0, AGAIN):
        level = "error"
    if event.kind == "asked" and event.fields.get("reason"):
        level = "warning"  # it is not done
    step = event.fields.get("step")
    return {
        "seq": number,
        "time": event.time,
        "step": step if isinstance(step, int) else None,
        "kind": event.kind,
        "text": what_happened(event),
        "level": level,
    }


def log_after(run_dir: Path, offset: int | None) -> dict[str, Any]:
    """The complete lines of the run's log from a byte on, and where to go on.

    Args:
        run_dir: Folder of the run.
        offset: What the last answer gave as `next`; None for the end of the log.
    """
    path = next((it for name in _LOGS if (it := run_dir / "logs" / name).is_file()), None)
    if path is None:
        return {"next": 0, "lines": []}
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        begin = max(0, size - _FIRST_LOG_BYTES) if offset is None or offset > size else offset
        file.seek(begin)
        data = file.read(_MOST_LOG_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == _MOST_LOG_BYTES:
        whole = data  # a line longer than an answer
    lines = [_TERMINAL.sub("", it) for it in whole.decode(errors="replace").splitlines()]
    cut = begin > 0 and (offset is None or offset > size)  # into the middle of a line
    return {"next": begin + len(whole), "lines": lines[1:] if cut else lines}

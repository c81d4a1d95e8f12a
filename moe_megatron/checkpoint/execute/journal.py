"""Records which ranges of a conversion are finished, so that it can be resumed after a kill.

The first line names the plan; each further line is a finished range with its checksum. A line that
a kill truncated counts as not written. Only one process at a time can hold a journal.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats import byte_ranges
from moe_megatron.errors import CheckpointError
from moe_megatron.reading import parse_json

FILE = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Finished:
    """A range that was written."""

    unit: int
    """Its number in the plan."""
    digest: str
    nonfinite: tuple[int, ...] = ()
    """Numbers of its tasks that wrote infinities or NaN."""


class Journal:
    """The journal of one staging folder, locked until `close`.

    Raises:
        CheckpointError: Another process is converting into the same folder.
    """

    def __init__(self, staging: Path, plan_hash: str) -> None:
        self._plan = plan_hash
        self._path = staging / FILE
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise CheckpointError(
                f"another process is converting into {staging}; wait for it, or choose another "
                "destination."
            ) from error

    def read(self) -> dict[int, Finished]:
        """Finished ranges by number; empty if the journal is of another plan."""
        lines = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).split(b"\n")[:-1]
        if not lines or _parsed(lines[0]) != self._first_line():
            return {}
        entries = (_finished(_parsed(line)) for line in lines[1:])
        return {entry.unit: entry for entry in entries if entry is not None}

    def start(self) -> None:
        """Discard all entries and start a new journal."""
        os.ftruncate(self._descriptor, 0)
        self._append(self._first_line())

    def add(self, finished: Finished) -> None:
        """Record that a range has been written."""
        self._append([finished.unit, finished.digest, finished.nonfinite])

    def remove(self) -> None:
        """Delete the file; the lock stays until `close`."""
        self._path.unlink()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def _first_line(self) -> dict[str, str]:
        return {"plan": self._plan, "checksum": byte_ranges.DEFAULT}

    def _append(self, entry: object) -> None:
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")


def _parsed(line: bytes) -> object:
    try:
        found: object = parse_json(line)
    except ValueError:
        return None
    return found


def _finished(entry: object) -> Finished | None:
    match entry:
        case [int(unit), str(digest), [*tasks]]:
            numbers = tuple(task for task in tasks if isinstance(task, int))
            return Finished(unit, digest, numbers) if len(numbers) == len(tasks) else None
    return None

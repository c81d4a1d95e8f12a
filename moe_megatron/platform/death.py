"""How ranks died: what a rank notes about its own failure, and which of several died first.

When one rank dies, the others lose their connection to it and fail as well, some of them sooner
than the first one has left. So a rank writes what happened to it into the error file that torchrun
names, with the time, and failures that are only the end of a connection come last.
It does not know what is done about a death.
"""

import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.files import publish
from moe_megatron.reading import read_json

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"

_OF_CONNECTIONS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "connectfullmesh",
    "socket timeout",
    "remote process exited",
    "nccl communicator was aborted",
    "failed to recv",
    "timed out waiting",
    "has ended",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """The end of a rank that did not end well."""

    rank: int
    exit_code: int
    """The exit code; if negative, the number of the signal that killed it."""
    message: str = ""
    """The exception, in a line."""
    lost_peer: bool = False
    """Whether it failed because another rank was gone."""
    time: float = 0.0

    def explain(self, memory_kills: int | None = None) -> str:
        """What happened, in a sentence without a full stop.

        Args:
            memory_kills: How many processes the kernel has killed for want of memory meanwhile;
                None if that is unknown.
        """
        if self.exit_code < 0:
            number = -self.exit_code
            text = f"rank {self.rank} was killed by signal {number} ({_name(number)})"
            return text + (_why_killed(memory_kills) if number == signal.SIGKILL else "")
        if self.message:
            return f"rank {self.rank} failed with {self.message}"
        return f"rank {self.rank} ended with exit code {self.exit_code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _why_killed(memory_kills: int | None) -> str:
    if memory_kills is None:
        return ", often for want of memory"
    if memory_kills > 0:
        return ", by the kernel for want of memory"
    return ", by another process: the kernel has counted no kill for want of memory"


def note_failure(error: BaseException, exit_code: int = 1) -> None:
    """Write what happened to this rank into the file that torchrun reads, if it named one.

    Args:
        error: What ends the rank.
        exit_code: The code with which it is about to leave.
    """
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path:
        return
    now = time.time()
    content = {
        "message": one_line(error),
        "timestamp": int(now),
        "rank": int(os.environ.get("RANK", "0")),
        "time": now,
        "exit_code": exit_code,
        "lost_peer": is_lost_peer(error),
    }
    try:
        # As a whole: torchrun may look at any time, and this process may be killed at any.
        publish(Path(path), json.dumps(content))
    except OSError:
        return  # torchrun then knows the exit code alone


def one_line(error: BaseException) -> str:
    """Type and message of an exception in a line that fits a console."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception says only that another process is gone."""
    if isinstance(error, ConnectionError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OF_CONNECTIONS)


def in_order(found: Iterable[Death], error_files: Iterable[Path]) -> list[Death]:
    """The deaths of ranks, the one that caused the others first.

    Args:
        found: The ranks that torchrun found ended; those that it ended itself are among them.
        error_files: Files of `note_failure`, also of ranks that had not left yet.
    """
    deaths = {death.rank: death for death in found if death.exit_code != 0}
    for path in error_files:
        if (noted := _read(path)) is not None:
            deaths[noted.rank] = noted
    return sorted(deaths.values(), key=lambda death: (death.lost_peer, death.time))


def _read(path: Path) -> Death | None:
    try:
        data = read_json(path)
        return Death(
            rank=int(data["rank"]),
            exit_code=int(data["exit_code"]),
            message=str(data["message"]),
            lost_peer=bool(data["lost_peer"]),
            time=float(data["time"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None

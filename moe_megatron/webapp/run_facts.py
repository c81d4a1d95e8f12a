"""What a list of runs says of each, from the ends of its files: cheap also for hundreds of them.

It keeps no file open, and reads none whole but the journal. `run_reader` reads a run that somebody
looks at.
"""

import time
from dataclasses import asdict, dataclass
from hashlib import blake2s
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from moe_megatron.config import CONFIG_FILE
from moe_megatron.errors import AGAIN, MoEError
from moe_megatron.reading import read_bytes
from moe_megatron.telemetry.history import HISTORY_FOLDER
from moe_megatron.telemetry.history.layout import Description
from moe_megatron.telemetry.journal import EVENTS_FILE, read_events
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_metrics_after,
    read_routing,
    read_routing_after,
)
from moe_megatron.telemetry.uptime.attempts import Attempts
from moe_megatron.telemetry.uptime.present import at_work, modified
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.webapp.json_values import nullable

State = Literal["running", "ended", "stopped", "empty", "unreadable"]

_FILES = (METRICS_FILE, ROUTING_FILE, EVENTS_FILE, CONFIG_FILE, HISTORY_FOLDER)
_NO_JOURNAL_SECONDS = 30.0
"""A run that keeps no journal counts as running for so long after its last record."""
_MOST_DESCRIPTION_BYTES = 2**20
_LOOKED_AT = 64
"""Records from the end, among which the last step is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One run in a list of them."""

    id: str
    name: str
    path: str
    """The last two parts of its path; others are nobody's business."""
    state: State
    problem: str | None
    """Why it cannot be read, for people."""
    layers: tuple[int, ...] = ()
    experts: int = 0
    top_k: int = 0
    first_step: int = 0
    last_step: int = 0
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**asdict(self), "layers": list(self.layers)}


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run."""
    return any((folder / name).exists() for name in _FILES)


def run_id(folder: Path) -> str:
    """Name of a run in addresses: it says nothing of where the folder is."""
    return blake2s(str(folder.resolve()).encode(), digest_size=5).hexdigest()


def facts_of(folder: Path) -> RunFacts:
    """Read the ends of a run's files; a damaged one is told of in `problem`."""
    about: dict[str, Any] = {
        "id": run_id(folder),
        "name": folder.name,
        "path": "/".join(folder.resolve().parts[-2:]),
    }
    try:
        known: dict[str, Any] = {**_shape(folder), **_steps(folder)}
        state = state_of(folder, Attempts(read_events(folder)), known.get("last_step", 0))
    except (MoEError, OSError) as error:
        return RunFacts(**about, state="unreadable", problem=without_path(str(error), folder))
    return RunFacts(**about, state=state, problem=None, **known)


def without_path(text: str, folder: Path) -> str:
    """A text without the path of a folder, which is nobody's business: files in it by their names.

    Args:
        text: Such as that of an error.
        folder: The folder.
    """
    for path in (str(folder), str(folder.resolve())):
        text = text.replace(f"{path}/", "").replace(path, folder.name)
    return text


def _shape(folder: Path) -> dict[str, Any]:
    """Of the model: from the description of the history, or the last line of the log."""
    try:
        text = read_bytes(folder / HISTORY_FOLDER / "zarr.json", _MOST_DESCRIPTION_BYTES)
    except OSError:
        text = b""
    if text:
        found = Description.from_json(text)
        layout = found.layout
        return {
            "layers": layout.layers,
            "experts": layout.num_experts,
            "top_k": layout.top_k,
            "first_step": found.first_step,
            "last_step": found.last_step,
        }
    path = folder / ROUTING_FILE
    newest = next(read_routing_after(path, 0), None) if path.is_file() else None
    if newest is None:
        return {}
    first = next(read_routing(path), newest)
    return {
        "layers": newest.layers,
        "experts": newest.num_experts,
        "top_k": newest.top_k,
        "first_step": first.step,
        "last_step": newest.step,
    }


def _steps(folder: Path) -> dict[str, Any]:
    """First and last step and loss, from the ends of metrics.jsonl."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    newest = [
        it for it in islice(read_metrics_after(path, -1), _LOOKED_AT) if isinstance(it, StepRecord)
    ]
    if not newest:
        return {}
    first = next(
        (it.step for it in islice(read_metrics(path), _LOOKED_AT) if isinstance(it, StepRecord)), 0
    )
    loss = next((it.loss for it in newest if it.loss is not None), None)
    return {"first_step": first, "last_step": newest[0].step, "loss": nullable(loss)}


def state_of(folder: Path, attempts: Attempts, last_step: int) -> State:
    """Whether a run trains, from its journal, or from its records where it has none.

    Args:
        folder: Of the run.
        attempts: From its journal.
        last_step: The last one on record; 0 for none.
    """
    recorded_at = max(modified(folder / name) or 0.0 for name in (METRICS_FILE, ROUTING_FILE))
    if not attempts.list:
        if time.time() - recorded_at < _NO_JOURNAL_SECONDS:
            return "running"
        return "stopped" if last_step else "empty"
    last = attempts.list[-1]
    if last.end is None and at_work(last, max(last.last_sign, recorded_at), time.time()):
        return "running"
    done = last.trained is not None and not last.interrupted
    if last.died_at is None and last.code in (None, 0) and (done or last.code == 0):
        return "ended"
    return "stopped" if last_step or last.code != AGAIN else "empty"

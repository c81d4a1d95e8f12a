"""The identity of a process: the id of its run, and the trace and span of its log lines.

The id is the name of the run folder and a random suffix, kept in RUN/run_id, so that two runs of
one name differ and a resumed run is the same, unless NVIDIA's telemetry has already named the run
(NEMO_LENS_RUN_ID). It does not know what uses the id.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from moe_megatron.files import replace_file
from moe_megatron.reading import read_json

RUN_ID_FILE = "run_id"
"""Name of the file in the run folder: a JSON object with the id, and the folder it was given to."""

_MOST_BYTES, _MOST_CHARACTERS = 2**16, 300

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def run_id(run_dir: Path | None) -> str:
    """The id of a run: NEMO_LENS_RUN_ID, else that in its folder, made by whoever asks first.

    A folder that was moved keeps its id. A copy, beside which the original is still there, is
    another run and gets an id of its own. A folder that cannot be written gives its name.
    """
    if named := os.environ.get("NEMO_LENS_RUN_ID"):
        return named
    if run_dir is None:
        return "moe"
    folder = run_dir.resolve()
    found = _read(folder)
    try:
        if found is None:
            _create(folder, f"{folder.name}-{os.urandom(3).hex()}")
        elif _is_copy(folder, *found):
            # The same for all processes that find out at once.
            suffix = hashlib.sha256(f"{found[0]} {folder}".encode()).hexdigest()[:6]
            replace_file(folder / RUN_ID_FILE, [_text(f"{folder.name}-{suffix}", folder)])
    except OSError:
        return folder.name if found is None else found[0]
    found = _read(folder)
    return folder.name if found is None else found[0]


def _read(folder: Path) -> tuple[str, Path] | None:
    try:
        data = read_json(folder / RUN_ID_FILE, _MOST_BYTES)
        name, given_to = str(data["id"]), Path(data["folder"])
        return (name, given_to) if name.isprintable() and len(name) <= _MOST_CHARACTERS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(name: str, folder: Path) -> bytes:
    return f"{json.dumps({'id': name, 'folder': str(folder)})}\n".encode()


def _create(folder: Path, name: str) -> None:
    """Write the file whole, unless another process has been faster."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{RUN_ID_FILE}.{os.urandom(6).hex()}"
    try:
        unfinished.write_bytes(_text(name, folder))
        os.link(unfinished, folder / RUN_ID_FILE)
    except FileExistsError:
        pass
    finally:
        unfinished.unlink(missing_ok=True)


def _is_copy(folder: Path, name: str, given_to: Path) -> bool:
    """Whether the folder that got the id is another one, and still there with it."""
    other = _read(given_to)
    if given_to == folder or other is None or other[0] != name:
        return False
    return not os.path.samefile(given_to, folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """One process of one run.

    Attributes:
        run_id: id of the run.
        rank: number of the process.
        trace_id: 32 hexadecimal digits, the same for all processes and restarts of the run: from
            the W3C variable TRACEPARENT if that is set, else derived from the id.
        span_id: 16 hexadecimal digits, new for each process.
    """

    run_id: str
    rank: int
    trace_id: str
    span_id: str

    @classmethod
    def of_process(cls, run_dir: Path | None, rank: int) -> Self:
        """The identity of this process."""
        name = run_id(run_dir)
        given = _TRACEPARENT.fullmatch(os.environ.get("TRACEPARENT", ""))
        return cls(
            run_id=name,
            rank=rank,
            trace_id=given[1] if given else hashlib.sha256(name.encode()).hexdigest()[:32],
            span_id=os.urandom(8).hex(),
        )

"""What a report holds of its runs: the answers of the server by their addresses, but fewer.

Of each run there is a frame for at most `MOST_COLUMNS` columns of steps, and whatever else there is
room for, what matters most first; several runs share the room. No text of training data is in it,
nor the log. It does not know the page around it.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from moe_megatron.webapp.calls import Answer, answer
from moe_megatron.webapp.cells_call import MOST_PARTNERS, partner_bytes
from moe_megatron.webapp.columns import Span, columns
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.view import views

MOST_COLUMNS = 200
"""Of curves, and of frames while they are small."""
MOST_DATA_BYTES = 570_000
"""Of all answers together: with the page, a report has less than 1 MB."""
MOST_FRAME_BYTES = 160 * 1024
"""Of all frames together."""
_MOST_LAYER_VALUES = 3000
"""Of one quantity, over layers and columns."""
_MOST_OPTIONAL_BYTES = 64 * 1024
"""Of an answer without which the page is whole; one that is larger is left out."""
_MOST_BIAS_BYTES, _MOST_PARTNER_BYTES = 32 * 1024, 96 * 1024
"""Of the bias of all experts, and of their partners."""
_IN_BASE64 = 4 / 3
_MOST_CHECKPOINTS = 8
_LOG = "The log is not part of a report; it is in the folder of the run, below logs."


def report_data(runs: Sequence[RunReader]) -> dict[str, Any]:
    """What the page reads instead of asking a server.

    Args:
        runs: The runs.

    Returns:
        The runs, answers by address with frames in base64, and the columns of the frames.
    """
    data: dict[str, Any] = {
        "runs": [{**run.facts.to_json(), "state": _state(run)} for run in runs],
        "calls": {"/api/views": [{"name": it.name, "title": it.title} for it in views()]},
        "columns": {},
    }
    for run in runs:
        spans = frame_spans(run, len(runs))
        data["calls"] |= _answers(run, spans, len(runs))
        data["columns"][run.facts.id] = spans
    return data


def _answers(run: RunReader, spans: list[Span], runs: int) -> dict[str, Any]:
    """The answers about one of so many runs, by their addresses."""
    about = {**_json(answer(run, "about", {})), "state": _state(run)}
    address = f"/api/runs/{about['id']}"
    calls: dict[str, Any] = {address: about, f"{address}/log": {"next": 1, "lines": [_LOG]}}
    for call, words in _needed(run, spans, runs):
        calls[f"{address}/{call}?{urlencode(words)}"] = _json(answer(run, call, words))
    room = MOST_DATA_BYTES // runs - _size(calls)
    for call, words in _further(run, spans, room):
        found = _json(answer(run, call, words))
        size = _size(found)
        if size <= room and (call == "cells" or size <= _MOST_OPTIONAL_BYTES):
            calls[f"{address}/{call}?{urlencode(words)}"] = found
            room -= size
    return calls


def _size(found: object) -> int:
    return len(json.dumps(found, separators=(",", ":")))


def _state(run: RunReader) -> str:
    """A report is about what is over: nothing in it changes any more."""
    return "ended" if run.state == "running" else run.state


def frame_spans(run: RunReader, runs: int = 1) -> list[Span]:
    """The columns of steps of which a report of so many runs has a frame; [] without routing."""
    shape = run.windows.shape
    if shape is None:
        return []
    most = MOST_FRAME_BYTES // runs // (len(shape.layers) * shape.num_experts)
    span = run.windows.first_step, run.windows.last_step
    return columns(*span, max(1, min(MOST_COLUMNS, most)))


def _needed(
    run: RunReader, spans: list[Span], runs: int
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """What is asked of the run in any case: the call and its words."""
    shape, (first, last) = run.windows.shape, run.span
    of_layers = str(MOST_COLUMNS)
    if shape is not None:
        most = _MOST_LAYER_VALUES // runs // max(1, len(shape.layers))
        of_layers = str(min(MOST_COLUMNS, max(1, most)))
    yield "summary", {}
    yield "series", {"columns": str(MOST_COLUMNS)}
    yield "layers", {"columns": of_layers}
    yield "events", {"after": "0"}
    yield "cost", {"columns": str(max(1, int(of_layers) // 3))}  # three such quantities
    for span in dict.fromkeys([*spans, (last, last), (first, last)] if spans else []):
        yield "matrix", {**_window(*span), "quantity": "load"}


def _further(
    run: RunReader, spans: list[Span], room: int
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """What is asked as long as there is room for it, what matters most first."""
    first, last = run.span
    if words := _cells(run, spans, room):
        yield "cells", words
    yield "ranks", _window(first, last)
    yield "moves", {"since": str(first), "last": str(last)}
    yield "flow", _window(first, last)
    if run.windows.shape is not None:
        yield "expert_cost", _window(first, last)
    checkpoints = [step for step in run.checkpoints if first < step < last]
    for since in reversed(checkpoints[-_MOST_CHECKPOINTS:]):
        yield "moves", {"since": str(since), "last": str(last)}
    for view in views():
        yield "view", {"name": view.name, **_window(first, last)}


def _cells(run: RunReader, spans: list[Span], room: int) -> Mapping[str, str] | None:
    """How many columns of bias and partners of each expert fit; None for neither."""
    shape = run.windows.shape
    if shape is None or not run.samples.there():
        return None
    most = max(0, room) / _IN_BASE64
    of_bias = int(min(_MOST_BIAS_BYTES, most / 4)) // (len(shape.layers) * shape.num_experts)
    partners = int(min(_MOST_PARTNER_BYTES, most / 2)) // partner_bytes(shape)
    if not of_bias or not partners:
        return None
    return {"columns": str(min(of_bias, len(spans))), "partners": str(min(partners, MOST_PARTNERS))}


def _window(first: int, last: int) -> dict[str, str]:
    return {"first": str(first), "last": str(last)}


def _json(found: Answer) -> Any:
    return base64.b64encode(found).decode() if isinstance(found, bytes) else found

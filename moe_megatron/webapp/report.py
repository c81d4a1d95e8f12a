"""The report of a run: the dashboard's page and the answers about the run, in one HTML file.

The answers are those that the server gives, by their addresses, but fewer: a frame for each of at
most `MOST_COLUMNS` columns of steps. A checkout without the built page gets facts and tables as
plain HTML. No text of training data is in a report, nor the log.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from moe_megatron.errors import DataError
from moe_megatron.files import replace_file
from moe_megatron.telemetry.history import HISTORY_FOLDER
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.webapp.built_page import PAGE, BuiltPage
from moe_megatron.webapp.calls import Answer, answer
from moe_megatron.webapp.cells_call import MOST_PARTNERS, partner_bytes
from moe_megatron.webapp.columns import Span, columns
from moe_megatron.webapp.plain_page import plain_report, plain_summary
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.view import views

REPORT_FILE = "report.html"
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


def write_report(run_dir: Path, output: Path | None = None, *, page: Path = PAGE) -> Path:
    """Write the report of a run, even of one that still trains or was killed.

    Args:
        run_dir: Its folder, with metrics.jsonl or a record of routing.
        output: File to write; RUN/report.html when None.
        page: Folder of the built page.

    Returns:
        The file written.

    Raises:
        DataError: The folder has no step of a run, or a file is damaged or cannot be written.
    """
    text = render_report(run_dir, page=page)
    path = run_dir / REPORT_FILE if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [text.encode()])
    return path


def render_report(run_dir: Path, *, page: Path = PAGE) -> str:
    """The report as an HTML document; arguments and errors as of `write_report`."""
    run = _opened(run_dir)
    summary = answer(run, "summary", {})
    assert not isinstance(summary, bytes)
    name, config = run.facts.name, run.config_text
    built = BuiltPage.read(page)
    if built is None:
        return plain_report(name, summary, config)
    plain = plain_summary(name, summary, config)
    return built.with_data(f"{name} - MoE Lab", report_data(run), plain)


def _opened(run_dir: Path) -> RunReader:
    known = [run_dir / it for it in (METRICS_FILE, ROUTING_FILE, HISTORY_FOLDER)]
    if not any(it.exists() for it in known):
        raise DataError(
            f"{known[0]}: no such file, but a report needs it; give the directory of a run, where "
            "`moe-megatron train` writes that file"
        )
    run = RunReader(run_dir.resolve())
    if run.span[0] > run.span[1]:
        raise DataError(
            f"{known[0]}: has no step record, but a report needs one; train at least one step "
            "(moe-megatron train), then write the report again"
        )
    return run


def report_data(run: RunReader) -> dict[str, Any]:
    """What the page reads instead of asking a server.

    Args:
        run: The run.

    Returns:
        The runs (one), answers by address with frames in base64, and the columns of the frames.
    """
    about = {**_json(answer(run, "about", {})), "state": _state(run)}
    spans = frame_spans(run)
    address = f"/api/runs/{about['id']}"
    calls: dict[str, Any] = {
        address: about,
        f"{address}/log": {"next": 1, "lines": [_LOG]},
        "/api/views": [{"name": it.name, "title": it.title} for it in views()],
    }
    for call, words in _needed(run, spans):
        calls[f"{address}/{call}?{urlencode(words)}"] = _json(answer(run, call, words))
    room = MOST_DATA_BYTES - _size(calls)
    for call, words in _further(run, spans, room):
        found = _json(answer(run, call, words))
        size = _size(found)
        if size <= room and (call == "cells" or size <= _MOST_OPTIONAL_BYTES):
            calls[f"{address}/{call}?{urlencode(words)}"] = found
            room -= size
    return {"runs": [{**run.facts.to_json(), "state": _state(run)}], "calls": calls,
            "columns": {about["id"]: spans}}  # fmt: skip


def _size(found: object) -> int:
    return len(json.dumps(found, separators=(",", ":")))


def _state(run: RunReader) -> str:
    """A report is about what is over: nothing in it changes any more."""
    return "ended" if run.state == "running" else run.state


def frame_spans(run: RunReader) -> list[Span]:
    """The columns of steps of which a report has a frame; [] without routing."""
    shape = run.windows.shape
    if shape is None:
        return []
    most = MOST_FRAME_BYTES // (len(shape.layers) * shape.num_experts)
    span = run.windows.first_step, run.windows.last_step
    return columns(*span, max(1, min(MOST_COLUMNS, most)))


def _needed(run: RunReader, spans: list[Span]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """What is asked of the run in any case: the call and its words."""
    shape, (first, last) = run.windows.shape, run.span
    of_layers = str(min(MOST_COLUMNS, max(1, _MOST_LAYER_VALUES // max(1, len(shape.layers))))
                    if shape else MOST_COLUMNS)  # fmt: skip
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

"""Log lines as a collector reads them."""

import json
import logging
import math
import re

import pytest

from moe_megatron.telemetry.identity import Identity
from moe_megatron.telemetry.sinks.json_log import JsonFormatter, LogSink
from moe_megatron.telemetry.values.records import EvalRecord

IDENTITY = Identity(run_id="r", rank=3, trace_id="0" * 32, span_id="1" * 16)


@pytest.fixture
def lines(caplog):
    """What loggers said, written by a `JsonFormatter` and parsed."""
    caplog.set_level(logging.INFO)
    formatter = JsonFormatter(IDENTITY)
    return formatter, lambda: [json.loads(formatter.format(record)) for record in caplog.records]


def test_line_says_when_what_and_who(lines):
    formatter, read = lines
    logging.getLogger("moe_megatron.data").warning("skipped %d\nlines", 3)
    formatter.step = 12
    (line,) = read()
    moment = line.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert line == {
        "level": "WARNING",
        "logger": "moe_megatron.data",
        "message": "skipped 3\nlines",
        "run_id": "r",
        "rank": 3,
        "trace_id": "0" * 32,
        "span_id": "1" * 16,
        "step": 12,
    }
    assert "\n" not in formatter.format(logging.makeLogRecord({"msg": "a\nb"}))


def test_exception_is_a_field(lines):
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("x").exception("oh")
    assert "RuntimeError: broken" in lines[1]()[0]["exception"]


def test_steps_and_evaluations_have_their_numbers_as_fields(
    lines, make_run, make_step, make_snapshot
):
    sink = LogSink(interval=2)
    sink.start(make_run())
    for step in (1, 2, 3):
        sink.step(make_step(step, loss=math.nan, skipped=step == 3), make_snapshot(step))
    sink.evaluation(EvalRecord(step=3, split="validation", loss=1.5))
    sink.close()
    start, second, third, evaluation, end = lines[1]()
    assert (start["message"], start["total_steps"]) == ("training starts", 300)
    assert (second["message"], second["step"], second["loss"]) == ("step", 2, "nan")
    assert second["tokens_dropped"] == int(make_snapshot(2).dropped.sum())
    assert (third["step"], third["skipped"]) == (3, True)
    assert (evaluation["split"], evaluation["loss"]) == ("validation", 1.5)
    assert end["message"] == "telemetry ends"


def test_all_processes_of_a_run_share_a_trace(tmp_path, monkeypatch):
    monkeypatch.delenv("TRACEPARENT", raising=False)
    monkeypatch.delenv("NEMO_LENS_RUN_ID", raising=False)
    first, second = (Identity.of_process(tmp_path / "run", rank) for rank in (0, 1))
    assert (first.run_id, first.rank, second.rank) == (second.run_id, 0, 1)
    assert first.trace_id == second.trace_id != Identity.of_process(tmp_path / "b", 0).trace_id
    assert first.span_id != second.span_id
    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert re.fullmatch("[0-9a-f]{16}", first.span_id)


def test_trace_of_whoever_started_the_run_is_taken_over(tmp_path, monkeypatch):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    monkeypatch.setenv("TRACEPARENT", f"00-{trace}-00f067aa0ba902b7-01")
    assert Identity.of_process(tmp_path, 0).trace_id == trace
    monkeypatch.setenv("TRACEPARENT", "nonsense")
    assert Identity.of_process(tmp_path, 0).trace_id != trace

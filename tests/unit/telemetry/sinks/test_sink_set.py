"""Real sinks that are slow, stuck or broken, on the real thread."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MakeStep = Callable[..., StepRecord]
MakeRun = Callable[..., RunInfo]
EVALUATION = EvalRecord(step=3, split="validation", loss=2.0)


class Recorder:
    """Remembers what it received; raises in the method named `fails_in`."""

    def __init__(self, fails_in: str = "", error: BaseException | None = None) -> None:
        self.calls: list[object] = []
        self._fails_in = fails_in
        self._error = error or RuntimeError("broken pipe")

    def _note(self, method: str, what: object) -> None:
        self.calls.append(what)
        if method == self._fails_in:
            raise self._error

    def start(self, run: RunInfo) -> None:
        self._note("start", "start")

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        self._note("step", record.step)

    def evaluation(self, record: EvalRecord) -> None:
        self._note("evaluation", record)

    def close(self) -> None:
        self._note("close", "close")


class Gated(Recorder):
    """Takes a step only once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        self.entered.set()
        self.gate.wait(10)
        super().step(record, routing)


class Buffering(Recorder):
    """Is told when to write."""

    def flush(self) -> None:
        self._note("flush", "flush")


def test_close_delivers_everything_in_order(make_step: MakeStep, make_run: MakeRun) -> None:
    first, second = Recorder(), Recorder()
    sinks = SinkSet([first, second])
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    sinks.evaluation(EVALUATION)
    sinks.step(make_step(2), None)
    sinks.close()
    assert first.calls == second.calls == ["start", 1, EVALUATION, 2, "close"]


@pytest.mark.parametrize("method", ["start", "step", "evaluation", "close"])
def test_failing_sink_is_reported_once_and_others_go_on(
    make_step: MakeStep, make_run: MakeRun, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    bad, good = Recorder(fails_in=method), Recorder()
    sinks = SinkSet([bad, good])
    sinks.start(make_run())
    for step in (1, 2, 3):
        sinks.step(make_step(step), None)
    sinks.evaluation(EVALUATION)
    sinks.evaluation(EVALUATION)
    sinks.close()
    assert good.calls == ["start", 1, 2, 3, EVALUATION, EVALUATION, "close"]
    assert bad.calls[-1] == "close"
    expected = "sink Recorder failed: RuntimeError: broken pipe; training goes on, and the sink is"
    assert len([m for m in caplog.messages if expected in m]) == 1


def test_sink_that_exits_does_not_end_the_others(make_step: MakeStep, make_run: MakeRun) -> None:
    good = Recorder()
    sinks = SinkSet([Recorder("step", SystemExit(1)), good])
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    sinks.close()
    assert good.calls == ["start", 1, "close"]


def test_full_queue_drops_steps_without_waiting_and_reports_once(
    make_step: MakeStep, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Gated()
    sinks = SinkSet([slow], queue_size=3)
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    assert slow.entered.wait(10)  # the queue is empty now and the sink is busy
    began = time.perf_counter()
    for step in range(2, 12):
        sinks.step(make_step(step), None)
    sinks.evaluation(EVALUATION)
    assert time.perf_counter() - began < 30  # whoever waits, waits for the gate
    assert sinks.dropped_records == 7
    slow.gate.set()
    sinks.close()
    assert slow.calls == ["start", 1, 2, 3, 4, EVALUATION, "close"]  # the evaluation is never lost
    full = [m for m in caplog.messages if "telemetry falls behind training" in m]
    assert len(full) == 1
    assert "3 records wait (sink Gated is busy); dropping step 5" in full[0]
    assert "telemetry dropped 7 step records of this run" in caplog.messages


def test_close_gives_up_on_a_stuck_sink(
    make_step: MakeStep, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Gated()
    sinks = SinkSet([stuck])
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    assert stuck.entered.wait(10)
    sinks.close(timeout=0.05)
    assert "did not finish within 0 s (sink Gated is busy)" in caplog.text
    stuck.gate.set()


def test_flush_waits_for_what_is_queued(make_step: MakeStep, make_run: MakeRun) -> None:
    slow = Gated()
    sinks = SinkSet([slow])
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    assert not sinks.flush(timeout=0.05)
    slow.gate.set()
    assert sinks.flush(timeout=10)
    assert slow.calls == ["start", 1]
    sinks.close()


@pytest.mark.parametrize("fails_in", ["", "flush"])
def test_flush_tells_buffering_sinks_to_write(
    make_step: MakeStep, make_run: MakeRun, caplog: pytest.LogCaptureFixture, fails_in: str
) -> None:
    buffering, other = Buffering(fails_in), Recorder()
    sinks = SinkSet([buffering, other])
    sinks.start(make_run())
    sinks.step(make_step(1), None)
    assert sinks.flush()
    assert buffering.calls[:3] == ["start", 1, "flush"]
    sinks.step(make_step(2), None)
    sinks.close()
    assert buffering.calls[3:] == [2, "close"]
    assert other.calls == ["start", 1, 2, "close"]
    assert len([m for m in caplog.messages if "sink Buffering failed" in m]) == bool(fails_in)


def test_close_twice_and_records_after_it_are_ignored(
    make_step: MakeStep, make_run: MakeRun
) -> None:
    sink = Recorder()
    sinks = SinkSet([sink])
    sinks.start(make_run())
    sinks.close()
    sinks.close()
    sinks.step(make_step(1), None)
    sinks.evaluation(EVALUATION)
    assert sinks.flush()
    assert sink.calls == ["start", "close"]


def test_never_started_set_closes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SinkSet([Recorder()]).close()
    assert not caplog.messages


SCRIPT = """
import sys
from pathlib import Path
from moe_megatron.telemetry.sinks.jsonl import MetricsLog
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.sinks.sink_set import SinkSet
sinks = SinkSet([MetricsLog()], queue_size=10_000)
sinks.start(RunInfo(run_dir=Path(sys.argv[1]), total_steps=500, start_step=0, num_layers=1,
                    num_experts=2, top_k=1, world_size=1, layers=(1,), description=""))
for step in range(1, 501):
    sinks.step(StepRecord(step=step, loss=1.0, learning_rate=None, grad_norm=None,
                          step_seconds=0.1, tokens=1, total_steps=500), None)
raise KeyboardInterrupt
"""


def test_interrupted_process_without_close_loses_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert "KeyboardInterrupt" in done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 500

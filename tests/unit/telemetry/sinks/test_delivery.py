"""Sinks that fail and come back: what they get, and what is said about it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moe_megatron.telemetry.history import HistorySink, RoutingHistory
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks import backoff
from moe_megatron.telemetry.sinks.delivery import WAITING_RECORDS, Call, Delivery
from moe_megatron.telemetry.sinks.health import SinkHealth, SinkState
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.testing.small_disk import empty, fill, small_disk

MakeStep = Callable[..., StepRecord]
MakeRun = Callable[..., RunInfo]


class Moody:
    """Fails as long as `mood` is an error."""

    name = "moody"

    def __init__(self) -> None:
        self.mood: BaseException | None = None
        self.got: list[object] = []

    def _take(self, what: object) -> None:
        if self.mood is not None:
            raise self.mood
        self.got.append(what)

    def start(self, run: RunInfo) -> None:
        self._take("start")

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        self._take(record.step)

    def evaluation(self, record: EvalRecord) -> None:
        self._take(record)

    def close(self) -> None:
        self.got.append("close")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def calls(sink: Moody, make_step: MakeStep, health: SinkHealth) -> Callable[[int], None]:
    delivery = Delivery(sink, health)
    return lambda step: delivery.deliver(Call(lambda s: s.step(make_step(step), None)))


@pytest.mark.usefixtures("impatient")
def test_refused_by_the_system_is_given_again_in_order(make_step: MakeStep, tmp_path: Path) -> None:
    sink, health = Moody(), SinkHealth(tmp_path)
    give = calls(sink, make_step, health)
    give(1)
    sink.mood = OSError(28, "No space left on device")
    give(2)
    give(3)
    assert health.states() == {"moody": SinkState(True, 1, 0)}
    sink.mood = None
    give(4)
    assert sink.got == [1, 2, 3, 4]
    assert health.states() == {"moody": SinkState(False, 1, 0)}
    failed, restored = read_events(tmp_path)
    assert failed.fields == {"sink": "moody", "reason": "No space left on device"}
    assert (restored.kind, restored.fields) == ("sink_restored", {"sink": "moody", "dropped": 0})


@pytest.mark.usefixtures("impatient")
def test_record_at_fault_is_left_out_and_the_next_is_given(make_step: MakeStep) -> None:
    sink, health = Moody(), SinkHealth()
    give = calls(sink, make_step, health)
    sink.mood = ValueError("no such step")
    give(1)
    sink.mood = None
    give(2)
    assert sink.got == [2]
    assert health.states() == {"moody": SinkState(False, 1, 1)}


@pytest.mark.usefixtures("impatient")
def test_sink_that_cannot_start_is_started_before_it_gets_records(
    make_step: MakeStep, make_run: MakeRun
) -> None:
    sink, health = Moody(), SinkHealth()
    delivery = Delivery(sink, health)
    sink.mood = ValueError("the port is taken")
    delivery.deliver(Call(lambda s: s.start(make_run()), needed=True))
    delivery.deliver(Call(lambda s: s.step(make_step(1), None)))
    assert sink.got == []
    sink.mood = None
    delivery.deliver(Call(lambda s: s.step(make_step(2), None)))
    assert sink.got == ["start", 1, 2]


def test_failed_sink_is_left_alone_for_a_while_and_close_tries_a_last_time(
    make_step: MakeStep,
) -> None:
    sink, health = Moody(), SinkHealth()
    delivery = Delivery(sink, health)
    sink.mood = OSError(5, "Input/output error")
    for step in range(1, WAITING_RECORDS + 8):
        delivery.deliver(Call(lambda s, step=step: s.step(make_step(step), None)))
    sink.mood = None
    delivery.close()
    assert sink.got == [*range(1, WAITING_RECORDS + 1), "close"]
    assert health.states() == {"moody": SinkState(False, 1, 7)}


def test_pauses_double_up_to_a_minute_and_begin_anew_after_success() -> None:
    now = 0.0
    pauses = backoff.Backoff(clock=lambda: now)
    found = []
    for _ in range(8):
        pauses.failed()
        began = now
        while pauses.waiting:
            now += 0.5
        found.append(now - began)
    assert found == [1, 2, 4, 8, 16, 32, 60, 60]
    pauses.worked()
    assert not pauses.waiting


def test_event_that_a_full_disk_refuses_is_noted_when_there_is_space(disk: Path) -> None:
    health = SinkHealth(disk)
    fill(disk)
    health.failed("history", "No space left on device")
    assert list(read_events(disk)) == []
    empty(disk)
    health.restored("history")
    failed, restored = read_events(disk)
    assert (failed.kind, restored.kind) == ("sink_failed", "sink_restored")
    assert failed.time <= restored.time


@pytest.mark.usefixtures("impatient")
def test_logs_and_history_on_a_disk_that_was_full_are_complete(
    disk: Path,
    make_run: MakeRun,
    make_step: MakeStep,
    make_snapshot: Callable[..., RoutingSnapshot],
) -> None:
    health = SinkHealth(disk)
    sinks = SinkSet([MetricsLog(), RoutingLog(), HistorySink(disk / "history")], health=health)
    sinks.start(make_run(run_dir=disk, layers=(2, 3)))

    def give(*steps: int) -> None:
        for step in steps:
            sinks.step(make_step(step), make_snapshot(step))
        sinks.flush()

    give(1, 2)
    fill(disk)
    give(*range(3, 60))
    broken = {name for name, state in health.states().items() if state.broken}
    assert broken == {"metrics.jsonl", "routing.jsonl", "history"}
    for file in (disk / "metrics.jsonl", disk / "routing.jsonl"):
        assert all(json.loads(line) for line in file.read_text().splitlines())
    empty(disk)
    give(60)
    sinks.close()
    for file in (disk / "metrics.jsonl", disk / "routing.jsonl"):
        steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        assert steps == list(range(1, 61))
    history = RoutingHistory(disk / "history")
    assert [found.step for found in history.snapshots()] == list(range(1, 61))
    assert not any(state.broken or state.dropped for state in health.states().values())


@pytest.mark.usefixtures("impatient")
def test_removed_run_folder_is_noticed_and_does_not_come_back(
    make_run: MakeRun, make_step: MakeStep
) -> None:
    run = make_run()
    health = SinkHealth(run.run_dir)
    sinks = SinkSet([MetricsLog()], health=health)
    sinks.start(run)
    sinks.step(make_step(1), None)
    sinks.flush()
    assert run.run_dir is not None
    shutil.rmtree(run.run_dir)
    sinks.step(make_step(2), None)
    sinks.step(make_step(3), None)
    sinks.close()
    assert health.states()["metrics.jsonl"].broken
    assert not run.run_dir.exists()

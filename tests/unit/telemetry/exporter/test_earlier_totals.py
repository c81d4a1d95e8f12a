"""What is read of a run's past, and that little of it is read."""

import json

import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.exporter.earlier_totals import EarlierTotals
from moe_megatron.telemetry.sinks import jsonl
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog, read_routing_after
from moe_megatron.telemetry.values.profile import RoutingProfile


@pytest.fixture
def logs(tmp_path, make_run, make_step, make_snapshot):
    """Logs of 9 steps, and the profile of the first 6."""
    snapshots = [make_snapshot(step) for step in range(1, 10)]
    for sink in (MetricsLog(), RoutingLog()):
        sink.start(make_run())
        for snapshot in snapshots:
            sink.step(make_step(snapshot.step, tokens=50), snapshot)
        sink.close()
    return snapshots, RoutingProfile.from_snapshots(snapshots[:6])


def test_both_sums_of_a_resumed_run(logs, make_run):
    snapshots, profile = logs
    earlier = EarlierTotals()
    earlier.start(make_run(start_step=6, earlier_routing=profile))
    until, everything = earlier.until_checkpoint, earlier.in_logs
    assert (until.steps, until.tokens, everything.steps) == (6, 300, 9)
    assert (until.routed == profile.tokens_per_expert).all()
    assert (everything.routed == sum(s.tokens_per_expert for s in snapshots)).all()
    assert (everything.dropped == sum(s.dropped for s in snapshots)).all()


def test_new_run_has_no_past_although_the_folder_holds_logs(logs, make_run):
    earlier = EarlierTotals()
    earlier.start(make_run(start_step=0))
    assert earlier.in_logs.steps == earlier.until_checkpoint.steps == 0


def test_run_in_another_folder_has_the_routing_of_its_checkpoint(logs, make_run, tmp_path):
    _, profile = logs
    earlier = EarlierTotals()
    earlier.start(make_run(run_dir=tmp_path / "new", start_step=6, earlier_routing=profile))
    assert earlier.until_checkpoint.steps == 0
    assert (earlier.in_logs.routed == profile.tokens_per_expert).all()


def test_reading_from_the_end_stops_at_the_step(logs, make_run, monkeypatch):
    monkeypatch.setattr(jsonl, "_BLOCK", 64)  # so that lines cross blocks
    path = make_run().run_dir / "routing.jsonl"
    text = path.read_text()
    path.write_text("not JSON\n" + text)  # never reached
    assert [s.step for s in read_routing_after(path, 4)] == [9, 8, 7, 6, 5]
    path.write_text(text)
    assert [s.step for s in read_routing_after(path, 0)] == list(range(9, 0, -1))
    path.write_text(text + '{"step": 10, "tok')
    assert [s.step for s in read_routing_after(path, 8)] == [9]
    path.write_text(text.rstrip("\n"))
    assert [s.step for s in read_routing_after(path, 8)] == [9]


def test_malformed_line_names_file_and_place(logs, make_run):
    path = make_run().run_dir / "routing.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"step": 10}) + "\n")
    with pytest.raises(DataError, match=r"routing.jsonl: line 1 from the end: missing field"):
        list(read_routing_after(path, 0))
    with pytest.raises(DataError, match="no such file"):
        list(read_routing_after(path.with_name("none"), 0))

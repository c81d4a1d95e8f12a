"""The account of pretend runs whose every second is known."""

from collections.abc import Callable
from typing import Any

import pytest

from moe_megatron.telemetry.journal import Event
from moe_megatron.telemetry.metric import LOST_TIME
from moe_megatron.telemetry.uptime.account import LOST, Account, account
from moe_megatron.telemetry.uptime.attempts import Attempts, what_happened
from moe_megatron.telemetry.uptime.steps import StepTimes
from moe_megatron.telemetry.values.records import StepRecord

MakeStep = Callable[..., StepRecord]


def event(time: float, kind: Any, **fields: Any) -> Event:
    return Event(time=time, kind=kind, fields=fields)


def begin(time: float, number: int) -> Event:
    return event(time, "attempt", attempt=number, host="h", pid=1, world_size=2, started=time)


def steps_of(make_step: MakeStep, seconds: dict[int, float], skipped: int = 0) -> StepTimes:
    times = StepTimes()
    times.extend(
        make_step(step, step_seconds=value, skipped=step == skipped)
        for step, value in seconds.items()
    )
    return times


def of(events: list[Event], steps: StepTimes, until: float, **given: Any) -> Account:
    found = account(
        Attempts(events), steps, until, **({"runs": False, "recorded_at": until} | given)
    )
    assert found is not None
    assert sum(found.rows().values()) == pytest.approx(found.wall, abs=1e-9)
    assert all(seconds >= -1e-9 for seconds in found.rows().values())
    return found


KILLED = [
    event(1000, "launched", host="h"),
    begin(1005, 1),
    event(1030, "first_step", step=1, seconds=20.0),  # ten more than a usual step
    event(1070, "saving", step=5),
    event(1073, "saved", step=5, seconds=3.0),
    event(1077, "evaluated", step=5, seconds=4.0),
    # Steps 6 to 8 are on record at 1117, when step 9 has ended; the kill comes at 1121.
    event(1121, "rank_died", rank=1, reason="rank 1 was killed by signal 9"),
    event(1131, "restarting", attempt=2),
    begin(1133, 2),
    event(1145, "resumed", step=5, seconds=6.0, reached=8, reached_at=1117.0, lost_steps=3,
          lost_seconds=30.0),
    event(1160, "first_step", step=6, seconds=12.0),
    event(1190, "trained", step=9, interrupted=False),
    event(1192, "ended", code=0),
]  # fmt: skip
KEPT = {1: 20.0, 2: 10.0, 3: 10.0, 4: 10.0, 5: 10.0, 6: 12.0, 7: 10.0, 8: 10.0, 9: 10.0}


def test_every_second_of_a_run_with_a_kill_and_a_resume(make_step: MakeStep) -> None:
    found = of(KILLED, steps_of(make_step, KEPT), until=1192)
    assert found.wall == 192
    assert found.kept == sum(KEPT.values()) - 10 - 2
    assert (found.kept_steps, found.lost_steps) == (9, 3)
    assert found.evaluation == 4
    assert found.lost == {
        "startup": 10 + (148 - 131 - 6),
        "load": 6,
        "warmup": 10 + 2,
        "save": 3,
        # On record, after the record, and the step that had ended without one.
        "recomputed": 30 + 4 + 10,
        "skipped": 0,
        "hang": 0,
        "waiting": 10,
    }
    assert found.goodput == found.kept / 192
    assert found.ettr == 1 - sum(found.lost.values()) / 192


def test_launcher_that_says_that_it_starts_again_and_that_it_has_makes_one_attempt(
    make_step: MakeStep,
) -> None:
    again = [it for it in KILLED if it.kind != "restarting"]
    again[7:7] = [event(1131, "restarting", attempt=1), event(1131.5, "launched", host="h")]
    found = of(again, steps_of(make_step, KEPT), until=1192)
    assert (found.attempts, found.lost["waiting"]) == (2, 10)


def test_steps_without_an_update_are_lost(make_step: MakeStep) -> None:
    events = [begin(0, 1), event(11, "first_step", step=1, seconds=1.0), event(14, "ended", code=0)]
    found = of(events, steps_of(make_step, {1: 1.0, 2: 1.0, 3: 2.0}, skipped=3), until=14)
    assert (found.kept, found.kept_steps, found.lost["skipped"]) == (2.0, 2, 2.0)


def test_warm_up_of_a_first_step_that_was_lost_is_no_recomputing(make_step: MakeStep) -> None:
    events = [
        begin(0, 1),
        event(10, "first_step", step=1, seconds=5.0),
        event(13, "rank_died", rank=0, reason="killed"),
        begin(13, 2),
        event(15, "resumed", step=0, seconds=0.0, reached=2, reached_at=13.0, lost_steps=2,
              lost_seconds=6.0),
        event(16, "first_step", step=1, seconds=1.0),
        event(18, "trained", step=3, interrupted=False),
    ]  # fmt: skip
    found = of(events, steps_of(make_step, {1: 1.0, 2: 1.0, 3: 1.0}), until=18)
    assert found.kept == 3.0
    assert found.lost["warmup"] == 4.0
    assert found.lost["recomputed"] == pytest.approx(2.0 + 1.0)  # and one that was not recorded
    assert found.lost["startup"] == 5.0 + 2.0


def test_steps_that_a_rollback_takes_back_are_recomputed(make_step: MakeStep) -> None:
    events = [
        begin(0, 1),
        event(11, "first_step", step=1, seconds=6.0),
        # Steps 1 to 4 take 6 + 3 s, step 5 is bad, the checkpoint of step 2 loads in 4 s.
        event(19, "rolled_back", step=5, to_step=2, left_out=False, reason="bad weights",
              seconds=4.0, lost_steps=2, lost_seconds=2.0),
        event(22, "trained", step=5, interrupted=False),
    ]  # fmt: skip
    steps = steps_of(make_step, {1: 6.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0})
    found = of(events, steps, until=22)
    assert (found.kept, found.kept_steps, found.lost_steps) == (5.0, 5, 2)
    assert (found.lost["recomputed"], found.lost["load"], found.lost["warmup"]) == (2.0, 4.0, 5.0)


def test_warm_up_of_a_first_step_that_is_rolled_back_is_no_recomputing(
    make_step: MakeStep,
) -> None:
    events = [
        begin(0, 1),
        event(3, "resumed", step=2, seconds=1.0),
        event(10, "first_step", step=3, seconds=5.0),
        event(13, "rolled_back", step=4, to_step=2, left_out=False, reason="bad weights",
              seconds=1.0, lost_steps=1, lost_seconds=5.0),
        event(16, "trained", step=5, interrupted=False),
    ]  # fmt: skip
    steps = steps_of(make_step, {3: 1.0, 4: 1.0, 5: 1.0})
    found = of(events, steps, until=16)
    assert (found.kept, found.lost["warmup"], found.lost["recomputed"]) == (3.0, 4.0, 1.0)


def test_hang_is_no_recomputing(make_step: MakeStep) -> None:
    events = [
        begin(0, 1),
        event(2, "first_step", step=1, seconds=1.0),
        event(60, "hang", rank=1, seconds=50),
        event(70, "rank_died", rank=1, reason="killed by the watchdog"),
    ]
    found = of(events, steps_of(make_step, {1: 1.0, 2: 1.0}), until=70, recorded_at=4.0)
    assert found.lost["hang"] == 66.0
    assert found.lost["recomputed"] == 1.0


def test_death_while_saving_is_time_for_saving(make_step: MakeStep) -> None:
    events = [
        begin(0, 1),
        event(2, "first_step", step=1, seconds=1.0),
        event(4, "saving", step=2),
        event(9, "rank_died", rank=0, reason="the disk is full"),
    ]
    found = of(events, steps_of(make_step, {1: 1.0, 2: 1.0}), until=9, recorded_at=4.0)
    assert found.lost["save"] == 5.0


def test_running_attempt_has_lost_nothing_of_the_step_it_makes(make_step: MakeStep) -> None:
    events = [begin(0, 1), event(2, "first_step", step=1, seconds=1.0)]
    steps = steps_of(make_step, {1: 1.0, 2: 1.0})
    found = of(events, steps, until=100, runs=True, recorded_at=4.0)
    assert (found.other, found.lost["recomputed"]) == (97.0, 0.0)


def test_launches_that_fail_before_the_first_step_are_start_up(make_step: MakeStep) -> None:
    events = [
        event(0, "launched", host="h"),
        event(5, "ended", code=1),
        event(8, "launched", host="h"),
        begin(9, 1),
        event(20, "rank_died", rank=0, reason="killed"),
    ]
    found = of(events, StepTimes(), until=20)
    assert (found.lost["startup"], found.lost["waiting"]) == (17.0, 3.0)


def test_steps_that_two_resumes_take_back_are_lost_once(make_step: MakeStep) -> None:
    resumed = {"step": 2, "seconds": 0.0, "reached": 4, "reached_at": 6.0, "lost_steps": 2,
               "lost_seconds": 2.0}  # fmt: skip
    events = [
        begin(0, 1),
        event(2, "first_step", step=1, seconds=1.0),
        begin(7, 2),
        event(8, "resumed", **resumed),  # killed before it rewound the record
        begin(9, 3),
        event(10, "resumed", **resumed),
        event(12, "first_step", step=3, seconds=1.0),
        event(13, "trained", step=4, interrupted=False),
    ]
    found = of(events, steps_of(make_step, dict.fromkeys(range(1, 5), 1.0)), until=13)
    assert (found.lost_steps, found.lost["recomputed"]) == (2, pytest.approx(2.0, abs=1.01))


def test_journal_without_an_attempt_has_no_account() -> None:
    assert account(Attempts(), StepTimes(), 5.0, runs=False, recorded_at=5.0) is None


def test_events_of_the_launcher_may_be_missing() -> None:
    attempts = Attempts([begin(10, 1), begin(30, 2), event(31, "saved", step=4, seconds=1)])
    assert [attempt.started for attempt in attempts.list] == [10, 30]
    assert attempts.newest_checkpoint == 4
    attempts.read([event(40, "set_aside", step=4, reason="one bit differs")])
    assert attempts.newest_checkpoint is None
    assert what_happened(attempts.notes[0]) == "set aside at step 4: one bit differs"


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event(9, "rank_died", rank=1, reason="no memory")], "rank 1: no memory"),
        ([event(9, "ended", code=75)], "stopped, to go on later"),
        ([event(9, "ended", code=93)], "made no progress"),
        ([event(9, "ended", code=7)], "exit code 7"),
        ([event(9, "trained", step=4, interrupted=True)], "stopped by a signal after step 4"),
        ([event(9, "trained", step=4, interrupted=False)], "done"),
        ([], ""),
    ],
)
def test_end_is_explained(events: list[Event], reason: str) -> None:
    assert Attempts([begin(0, 1), *events]).list[0].end_reason == reason


def test_every_kind_of_lost_time_is_explained() -> None:
    assert tuple(LOST) == LOST_TIME

"""The stopwatch of phases, on a clock that only moves when it is told to."""

import pytest

from moe_megatron.mcore.measure.phases import PhaseClock


class Time:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    time = Time()
    return PhaseClock(time), time


def test_phases_do_not_overlap_and_add_up(clock):
    phases, time = clock
    time.now += 1
    with phases.measure("step"):
        time.now += 2
        with phases.measure("data"):
            time.now += 4
        with phases.measure("data"):
            time.now += 8
        time.now += 16
    time.now += 32
    assert phases.lap() == {"step": 18, "data": 12, "other": 33}


def test_lap_starts_anew(clock):
    phases, time = clock
    with phases.measure("step"):
        time.now += 2
    phases.lap()
    time.now += 5
    assert phases.lap() == {"other": 5}


def test_phase_that_fails_is_measured_too(clock):
    phases, time = clock

    def fail():
        with phases.measure("step"):
            time.now += 2
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert phases.lap() == {"step": 2, "other": 0}

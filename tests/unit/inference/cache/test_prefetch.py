"""Reading ahead goes on while it gains, and ends itself when it does not."""

from typing import Any

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.prefetch import Prefetch, Trial


class Clock:
    """Time that a test makes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def passes(number: int, *, ahead: float, without: float, useful: float = 1.0) -> Trial:
    """A trial after so many forward passes, that take so many seconds with it, and without."""
    clock = Clock()
    trial = Trial(Prefetch(window=5, megabytes_per_pass=1.0), clock)
    for it in range(number):
        trial.begin_pass()
        if trial.reads:
            assert trial.allows(1000)
            trial.useful(int(1000 * useful))
        # A pause of somebody who thinks, which is nobody's fault.
        clock.now += (ahead if trial.reads else without) + 60.0 * (it % 10 == 7)
    return trial


def test_it_is_tried_in_turns() -> None:
    trial = Trial(Prefetch(window=4), Clock())
    seen = []
    for _ in range(16):
        trial.begin_pass()
        seen.append(trial.reads)
    assert seen == 2 * (4 * [True] + 4 * [False])


def test_it_goes_on_while_it_gains_and_is_tested_rarely() -> None:
    trial = passes(500, ahead=1.0, without=1.2)
    assert trial.ended is None
    clock = Clock()
    trial = Trial(Prefetch(window=5), clock)
    ahead = 0
    for _ in range(400):
        trial.begin_pass()
        ahead += trial.reads
        clock.now += 1.0 if trial.reads else 1.5
    assert trial.ended is None
    assert ahead > 320


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"ahead": 1.2, "without": 1.0}, "a forward pass took 1.2 s with it and 1 s without"),
        ({"ahead": 1.0, "without": 1.0}, "a forward pass took 1 s with it and 1 s without"),
        (
            {"ahead": 1.0, "without": 1.5, "useful": 0.3},
            "30% of the bytes that were read ahead were needed",
        ),
    ],
)
def test_it_ends_itself_when_it_loses(times: dict[str, Any], said: str) -> None:
    assert passes(20, **times).ended is None
    trial = passes(22, **times)
    assert trial.ended == said
    assert not trial.reads


def test_a_gain_that_is_lost_later_ends_it() -> None:
    clock = Clock()
    trial = Trial(Prefetch(window=5), clock)
    for it in range(200):
        trial.begin_pass()
        clock.now += 1.0 + (trial.reads and it > 100) + (not trial.reads) * 0.5
    assert trial.ended == "a forward pass took 2 s with it and 1.5 s without"


def test_bytes_of_a_pass_have_a_limit() -> None:
    trial = Trial(Prefetch(megabytes_per_pass=0.003), Clock())
    trial.begin_pass()
    assert [trial.allows(1000) for _ in range(4)] == [True, True, True, False]
    trial.begin_pass()
    assert trial.allows(1000)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"megabytes_per_pass": 0}, "megabytes_per_pass"),
        ({"least_useful": 1.5}, "must be from 0 to 1"),
        ({"window": 2}, "window"),
    ],
)
def test_terms_out_of_range_are_refused(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Prefetch(**terms)

"""Every window is the sum of its steps, whichever files they are in, and also while it grows."""

from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history import RoutingHistory
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing_between, rewind
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.written_run import LAYERS, step_routing, write_run
from moe_megatron.webapp import routing_windows
from moe_megatron.webapp.routing_windows import RoutingWindows

PLACES = {"history": {"log": False}, "log": {"history": 0}, "both": {"history": 25}}


def slow_sum(first: int, last: int) -> RoutingProfile:
    return RoutingProfile.from_snapshots(map(step_routing, range(first, last + 1)))


def check(found: RoutingProfile, first: int, last: int) -> None:
    expected = slow_sum(first, last)
    for name in ("tokens", "steps", "first_step", "last_step"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("tokens_per_expert", "assigned", "dropped"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.per_layer.keys() == expected.per_layer.keys()
    for name, values in expected.per_layer.items():
        np.testing.assert_allclose(found.per_layer[name], values, rtol=1e-12)


LONG_BLOCKS = routing_windows._BLOCKS


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_windows, "_BLOCKS", (4, 8, 16))


@pytest.fixture
def long_blocks(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_windows, "_BLOCKS", LONG_BLOCKS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {place: write_run(folder / place, 40, **how) for place, how in PLACES.items()}


@pytest.mark.parametrize("place", PLACES)
def test_windows_are_the_sums_of_their_steps(runs: dict[str, Path], place: str) -> None:
    windows = RoutingWindows(runs[place])
    assert (windows.first_step, windows.last_step) == (1, 40)
    assert windows.shape is not None
    assert windows.shape.layers == LAYERS
    assert windows.quantities == ("entropy", "z_loss")
    for first, last in [(1, 40), (1, 1), (40, 40), (3, 38), (5, 20), (17, 24), (24, 27)]:
        check(windows.profile(first, last), first, last)
        check(windows.profile(first, last), first, last)  # of what was kept
    assert np.array_equal(
        windows.profile(7, 7).tokens_per_expert, step_routing(7).tokens_per_expert
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("most", [1, 7, 100])
def test_columns_are_the_sums_of_their_steps(runs: dict[str, Path], place: str, most: int) -> None:
    windows = RoutingWindows(runs[place])
    found = list(windows.columns(3, 39, most))
    assert 1 <= len(found) <= most
    for (first, last), profile in found:
        check(profile, first, last)
    assert [found[0][0][0], found[-1][0][1]] == [3, 39]


@pytest.mark.usefixtures("long_blocks")
def test_long_windows_are_read_from_the_sums_of_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = RoutingWindows(write_run(tmp_path / "run", 600, log=False))
    found = dict(windows.columns(1, 600, 9))  # of 128 steps
    assert list(found) == [(1, 128), (129, 256), (257, 384), (385, 512), (513, 600)]
    for (first, last), profile in found.items():
        check(profile, first, last)
    check(windows.profile(1, 600), 1, 600)
    check(windows.profile(70, 330), 70, 330)  # whose ends are no whole sums

    def read(*window: object) -> None:
        raise AssertionError(f"single steps are read: {window}")

    monkeypatch.setattr(RoutingHistory, "tokens_per_expert", read)
    fresh = RoutingWindows(tmp_path / "run")
    check(fresh.profile(1, 512), 1, 512)
    assert len(list(fresh.columns(1, 512, 8))) == 8


def test_a_run_that_grows_is_followed_without_its_history(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 20, history=12)
    windows = RoutingWindows(run)
    check(windows.profile(1, 20), 1, 20)
    assert not windows.refresh()
    further = write_run(tmp_path / "other", 30, history=0)
    lines = (further / ROUTING_FILE).read_bytes().splitlines(keepends=True)
    with (run / ROUTING_FILE).open("ab") as file:
        file.writelines([*lines[20:25], lines[25][:10]])
    assert windows.refresh()
    assert (windows.last_step, windows.newest and windows.newest.step) == (25, 25)
    check(windows.profile(10, 25), 10, 25)


def test_steps_that_are_taken_back_are_gone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40, history=0)
    windows = RoutingWindows(run)
    check(windows.profile(1, 40), 1, 40)
    rewind(run / ROUTING_FILE, 30)
    windows.refresh()
    assert windows.last_step == 30
    check(windows.profile(1, 40), 1, 30)


def test_a_column_is_asked_once_until_its_steps_are_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 25, history=0)
    windows, asked = RoutingWindows(run), list[int]()

    def last_step(profile: RoutingProfile) -> int:
        asked.append(profile.last_step or 0)
        return asked[-1]

    def values() -> list[tuple[tuple[int, int], int]]:
        asked.clear()
        return windows.values(last_step, 1, 100, 20)  # columns of two steps, later of four

    first = values()
    assert first == [((it, min(25, it + 1)), min(25, it + 1)) for it in range(1, 26, 2)]
    assert (values(), asked) == (first, [])
    further = write_run(tmp_path / "other", 42, history=0)
    lines = (further / ROUTING_FILE).read_bytes().splitlines(keepends=True)
    with (run / ROUTING_FILE).open("ab") as file:
        file.writelines(lines[25:28])
    windows.refresh()
    assert values() == [*first[:-1], ((25, 26), 26), ((27, 28), 28)]
    assert asked == [26, 28]
    rewind(run / ROUTING_FILE, 20)
    windows.refresh()
    assert values()[-1] == ((20, 20), 20)
    assert asked == [*range(1, 21)]


def test_what_is_kept_is_bounded(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_windows, "KEPT_BYTES", 1)
    monkeypatch.setattr(routing_windows, "KEPT_COLUMNS", 5)
    windows = RoutingWindows(runs["both"])
    check(windows.profile(1, 40), 1, 40)
    assert len(windows._sums) == 8
    assert len(windows.values(lambda it: it.steps, 1, 40, 40)) == 40
    assert len(windows._values) == 5


def test_a_run_without_routing_says_so(tmp_path: Path) -> None:
    windows = RoutingWindows(write_run(tmp_path / "run", 3, history=0, log=False))
    assert windows.shape is None
    with pytest.raises(DataError, match=r"run has no routing: neither routing.jsonl nor"):
        windows.profile(1, 3)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 9), (9, 30), (0, 3), (31, 40), (5, 4)])
def test_the_log_is_read_from_the_middle(
    runs: dict[str, Path], tmp_path: Path, first: int, last: int
) -> None:
    path = tmp_path / ROUTING_FILE
    lines = (runs["log"] / ROUTING_FILE).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:30]))
    with path.open("ab") as file:
        file.write(b'{"step": 31, "tok')  # half a line
    found = [it.step for it in read_routing_between(path, first, last)]
    assert found == [step for step in range(1, 31) if first <= step <= last]

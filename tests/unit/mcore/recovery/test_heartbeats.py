"""Who hangs, by what ranks tell of themselves; nobody's clock is asked."""

from pathlib import Path

import pytest

from moe_megatron.mcore.recovery.heartbeats import (
    Beat,
    claim,
    find_culprit,
    read_beats,
    write_beat,
)


def beat(rank: int, progress: int = 7, *, waits: bool = True, count: int = 1) -> Beat:
    return Beat(
        rank=rank,
        host="node",
        pid=100 + rank,
        started=1.5,
        count=count,
        progress=progress,
        step=3,
        phase="forward_backward",
        waits=waits,
    )


@pytest.mark.parametrize(
    ("beats", "silent", "culprit"),
    [
        # Silence weighs most: such a process is stopped or gone.
        ([beat(0, 6, waits=False), beat(1), beat(2)], [2], 2),
        # The one behind is waited for, whatever it does.
        ([beat(0), beat(1, 6), beat(2)], [], 1),
        ([beat(0), beat(1, 6), beat(2, 6, waits=False)], [], 2),
        # In one step, it is the one that does not wait.
        ([beat(0), beat(1), beat(2, waits=False)], [], 2),
        # All wait for each other: the network, or a collective in another order.
        ([beat(0), beat(1)], [], None),
        ([], [], None),
    ],
)
def test_culprit_is_the_rank_the_others_wait_for(
    beats: list[Beat], silent: list[int], culprit: int | None
) -> None:
    found = find_culprit(beats, silent)
    assert (None if found is None else found.rank) == culprit


def test_beats_are_read_as_written_and_broken_ones_left_out(tmp_path: Path) -> None:
    write_beat(tmp_path, beat(0))
    write_beat(tmp_path, beat(0, 8, count=2))
    (tmp_path / "rank1.json").write_text('{"rank": 1')
    (tmp_path / "rank2.json").write_text('{"rank": 2}')
    assert read_beats(tmp_path, 4) == {0: beat(0, 8, count=2)}


def test_only_the_first_rank_tells(tmp_path: Path) -> None:
    assert [claim(tmp_path), claim(tmp_path)] == [True, False]

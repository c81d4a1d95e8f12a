"""Counts by task: written, read, added up, and refused where they cannot be true."""

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

COUNTS = np.array([[3, 5], [4, 4]])


def snapshot(**tasks: list[list[int]]) -> RoutingSnapshot:
    return RoutingSnapshot(
        step=1, tokens=8, top_k=1, layers=(1, 2), tokens_per_expert=COUNTS,
        assigned=np.array([8, 8]), dropped=np.array([0, 0]), per_layer={},
        by_task={name: np.array(counts) for name, counts in tasks.items()},
    )  # fmt: skip


def test_a_snapshot_reads_what_it_wrote_with_tasks_and_without() -> None:
    of_tasks = snapshot(code=[[1, 2], [3, 0]], prose=[[2, 3], [1, 4]])
    again = RoutingSnapshot.from_json_dict(of_tasks.to_json_dict())
    assert {name: it.tolist() for name, it in again.by_task.items()} == {
        "code": [[1, 2], [3, 0]], "prose": [[2, 3], [1, 4]],
    }  # fmt: skip
    assert "by_task" not in snapshot().to_json_dict()


def test_profiles_add_tasks_that_only_one_of_them_has() -> None:
    profile = RoutingProfile.from_snapshots([snapshot(code=[[1, 2], [3, 0]])])
    profile.merge(RoutingProfile.from_snapshots([snapshot(prose=[[2, 3], [1, 4]])]))
    profile.add(snapshot(code=[[1, 1], [1, 1]]))
    found = {name: it.tolist() for name, it in profile.by_task.items()}
    assert found == {"code": [[2, 3], [4, 1]], "prose": [[2, 3], [1, 4]]}


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([[9, 0], [0, 0]], "tasks have more tokens of an expert than it got"),
        ([[-1, 0], [0, 0]], "task 'code' must not be negative"),
        ([[1, 0, 0], [0, 0, 0]], r"task 'code' are int64 \[2, 3\], not int64 \[2, 2\]"),
    ],
)
def test_counts_that_cannot_be_true_are_refused(counts: list[list[int]], reason: str) -> None:
    data = {**snapshot().to_json_dict(), "by_task": {"code": counts}}
    with pytest.raises(DataError, match=reason):
        RoutingSnapshot.from_json_dict(data)

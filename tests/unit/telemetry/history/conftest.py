"""A history of the pretend run of the folder above, and what it should hold."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.history import HistorySink, RoutingHistory
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "history"


@pytest.fixture
def write(
    folder: Path,
    make_run: Callable[..., RunInfo],
    make_step: Callable[..., StepRecord],
    make_snapshot: Callable[..., RoutingSnapshot],
) -> Callable[..., None]:
    """Writes steps as one start of a run; keywords replace fields of the run."""

    def write(steps: Iterable[int], *, flush_seconds: float = 10.0, **run: Any) -> None:
        sink = HistorySink(folder, flush_seconds=flush_seconds)
        sink.start(make_run(**run))
        for step in steps:
            sink.step(make_step(step), make_snapshot(step))
        sink.close()

    return write


@pytest.fixture
def check(
    folder: Path, make_snapshot: Callable[..., RoutingSnapshot]
) -> Callable[[Iterable[int]], None]:
    """Compares a whole history, value by value, with the snapshots that were written."""

    def check(steps: Iterable[int]) -> None:
        found = {snapshot.step: snapshot for snapshot in RoutingHistory(folder).snapshots()}
        assert list(found) == list(steps)
        for step, snapshot in found.items():
            expected = make_snapshot(step)
            for field in fields(RoutingSnapshot):
                mine, theirs = getattr(snapshot, field.name), getattr(expected, field.name)
                if field.name == "per_layer":
                    assert list(mine) == list(theirs)
                    mine, theirs = list(mine.values()), list(theirs.values())
                np.testing.assert_array_equal(mine, theirs)

    return check

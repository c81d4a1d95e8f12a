"""Results of a benchmark that are kept, so that a command that was stopped goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.finetuning.kept import kept


def test_result_of_another_task_is_made_anew_and_a_failure_is_not_kept(tmp_path: Path) -> None:
    made: list[int] = []

    def make(value: int) -> Callable[[], dict[str, Any]]:
        return lambda: made.append(value) or {"value": value}

    def fail() -> dict[str, Any]:
        raise RuntimeError("first line\nthe device is gone\n")

    assert kept(tmp_path, "one", {"steps": 1}, fail) == {"error": "the device is gone"}
    assert kept(tmp_path, "one", {"steps": 1}, make(1)) == {"value": 1}
    assert kept(tmp_path, "one", {"steps": 1}, make(2)) == {"value": 1}
    assert kept(tmp_path, "one", {"steps": 2}, make(3)) == {"value": 3}
    assert made == [1, 3]

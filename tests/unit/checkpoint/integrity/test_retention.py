"""What may be removed, and that readers never see half of a checkpoint."""

from pathlib import Path

import pytest

from moe_megatron.checkpoint.integrity.retention import (
    RANK,
    VALIDATION_LOSS,
    Keep,
    finish_removals,
    remove,
    surplus,
)
from moe_megatron.checkpoint.integrity.seal import seal, unseal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 10 to 60; loss is lowest at 20, then at 40; 30 was not evaluated."""
    losses = {10: 5.0, 20: 1.0, 30: None, 40: 2.0, 50: 3.0, 60: 4.0}
    for step, loss in losses.items():
        folder = tmp_path / f"iter_{step:07d}"
        folder.mkdir()
        (folder / ".metadata").write_text("tensors")
        seal(folder, notes={VALIDATION_LOSS: loss})
    (tmp_path / "iter_0000070").mkdir()  # its save was cut short
    (tmp_path / "iter_0000060.damaged").mkdir()
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Keep(), [10, 20, 30, 40, 50, 60]),
        (Keep(last=2), [50, 60]),
        (Keep(last=1), [60]),
        (Keep(last=9), [10, 20, 30, 40, 50, 60]),
        (Keep(every=30), [30, 60]),
        (Keep(every=7), [60]),
        (Keep(best=2), [20, 40, 60]),
        (Keep(last=1, every=30, best=1), [20, 30, 60]),
    ],
)
def test_rules_add_up(keep: Keep, left: list[int], root: Path) -> None:
    for folder in surplus(root, keep, 60):
        remove(folder)
    kept = sorted(path.name for path in root.iterdir())
    others = ["iter_0000060.damaged", "iter_0000070", "notes.txt"]
    assert kept == sorted([f"iter_{step:07d}" for step in left] + others)


def test_another_value_takes_the_place_of_the_loss(root: Path) -> None:
    for step in (10, 50):
        folder = root / f"iter_{step:07d}"
        seal(folder, notes={VALIDATION_LOSS: 9.0, RANK: -0.5 if step == 50 else float("nan")})
    assert [path.name[-2:] for path in surplus(root, Keep(last=1, best=1), 60)] == [
        "10", "20", "30", "40",
    ]  # fmt: skip


def test_newest_that_looks_valid_stays(root: Path) -> None:
    unseal(root / "iter_0000060")
    (root / "iter_0000050" / ".metadata").write_text("tensors and more")
    assert [path.name[-2:] for path in surplus(root, Keep(last=1), 60)] == ["10", "20", "30", "50"]


def test_checkpoint_that_the_run_started_from_stays(root: Path) -> None:
    start = root / "iter_0000030"
    assert start not in surplus(root, Keep(last=1), 60, [start])


def test_what_is_newer_than_the_newest_complete_one_may_be_being_written(root: Path) -> None:
    assert [path.name[-2:] for path in surplus(root, Keep(last=1), 40)] == ["10", "20", "30"]


def test_removal_that_was_killed_is_finished(root: Path) -> None:
    (root / "iter_0000010").rename(root / ".iter_0000010.removing")
    finish_removals(root)
    assert not list(root.glob(".*"))
    (root / ".iter_0000020.removing").mkdir()
    remove(root / "iter_0000020")
    assert not list(root.glob("*iter_0000020*"))

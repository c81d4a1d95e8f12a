"""Saves that fail in runs of two ranks: the run goes on as if unhurt, and says what it left out."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.errors import AGAIN, FAULT, NoRoomError
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import few_steps, step_records
from moe_megatron.testing.saved_tensors import whole_tensors
from moe_megatron.testing.small_disk import empty, fill, small_disk

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

STEPS = 6
BROKEN = 4
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=4),
    "parallel.expert_parallel_size": 2,
    "checkpoint.save_interval": 2,
    "checkpoint.patience_seconds": 30,
    "telemetry.console": False,
    "telemetry.history": False,
    "megatron.mock-data": True,
}
FORMATS: dict[str, dict[str, Any]] = {
    "own shards": {},
    "megatron": {"checkpoint.fully_reshardable": False},
    "background": {"checkpoint.async_save": True},
}


def one_rank(folder: Path, begins: bool) -> None:
    """The second rank may write no large files."""
    from moe_megatron.mcore import world

    if world.rank() == 1:
        limit = 4096 if begins else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def whole_disk(folder: Path, begins: bool) -> None:
    """There is no room at all."""
    from moe_megatron.mcore import world

    if world.rank() == 0:
        (fill if begins else empty)(folder)


def in_the_way(name: str) -> Callable[[Path, bool], None]:
    """The first rank finds a folder where it wants to write a file of this name."""

    def harm(folder: Path, begins: bool) -> None:
        from moe_megatron.mcore import world

        if begins and world.rank() == 0:
            (folder / "checkpoints" / f"iter_{BROKEN:07d}" / name).mkdir(parents=True)

    return harm


HARMS: dict[str, Callable[[Path, bool], None]] = {
    "disk": whole_disk,
    "one rank": one_rank,
    "metadata": in_the_way(".metadata.tmp"),
    "format": in_the_way("metadata.json"),
    "side file": in_the_way("config.tmp"),
}
CASES = [("own shards", "disk"), ("own shards", "metadata"), ("background", "one rank")]
MORE_CASES = [
    *(("own shards", harm) for harm in ("one rank", "format", "side file")),
    *(("background", harm) for harm in ("disk", "metadata")),
    ("megatron", "disk"),
]
NO_ROOM = {"checkpoint.patience_seconds": 1}


def train(run_dir: Path, harm: str | None, disk: Path, **changes: Any) -> int:
    """A rank's side: one run, harmed from before the second save until after it."""
    from megatron.training import training

    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
    from moe_megatron.run.start import Attachments, start

    class Harming(Callback):
        def on_step_end(self, event: StepEnd) -> None:
            if event.step == BROKEN:  # the save before is not to be harmed: it is over
                training.maybe_finalize_async_save(blocking=True)
            if event.step == BROKEN + 1:
                wait_for_writers()
            if event.step == BROKEN:
                HARMS[harm](disk if harm == "disk" else run_dir, True) if harm else None
            if event.step == BROKEN + 1:
                HARMS[harm](disk if harm == "disk" else run_dir, False) if harm else None

    config = apply_overrides(
        load_config("test_tiny"), {**SHAPE, **changes, "run_dir": str(run_dir)}
    )
    return start(config, attached=Attachments(callbacks=[Harming()])).outcome.steps


def wait_for_writers() -> None:
    """Wait until no process writes a checkpoint for this rank any more."""
    while any(it.status() != psutil.STATUS_ZOMBIE for it in psutil.Process().children()):
        time.sleep(0.01)


def train_to_a_full_disk(run_dir: Path, disk: Path, seconds: float, **changes: Any) -> Any:
    """A rank's side: a run whose last save finds no room, for some time."""
    from megatron.training import training

    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
    from moe_megatron.run.start import Attachments, start

    class FillsTheDisk(Callback):
        def on_step_end(self, event: StepEnd) -> None:
            if event.step == STEPS - 1:  # the save before is another test's
                training.maybe_finalize_async_save(blocking=True)
            if event.step == STEPS and world.rank() == 0:
                fill(disk)
                threading.Timer(seconds, empty, [disk]).start()

    config = apply_overrides(
        load_config("test_tiny"), {**SHAPE, **changes, "run_dir": str(run_dir)}
    )
    try:
        result = start(config, attached=Attachments(callbacks=[FillsTheDisk()]))
    except NoRoomError as error:
        world.wait_for_all()
        while (disk / "filler").exists():
            time.sleep(0.05)
        return error.exit_code, str(error)
    return result.exit_code, result.checkpoint and result.checkpoint.name


def runs(root: Path, cases: list[tuple[str, str]], at_the_end: list[str]) -> dict[str, Any]:
    """A rank's side: all runs, one after the other."""
    made: dict[str, Any] = {"unhurt": train(root / "unhurt", None, root)}
    for name, harm in cases:
        train(root / f"{name}, {harm}", harm, root, **FORMATS[name])
    for name in at_the_end:
        run_dir = root / f"{name}, at the end"
        made[name] = train_to_a_full_disk(run_dir, root, 1.0, **FORMATS[name])
    for name, changes in {"earlier": {}, "none": {"checkpoint.save_interval": STEPS}}.items():
        made[name] = train_to_a_full_disk(root / name, root, 2.0, **NO_ROOM, **changes)
    return made


@pytest.fixture(scope="module")
def found(
    chosen: Callable[[str], list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The disk with the folders of all runs, and what a rank knows of them."""
    with small_disk(tmp_path_factory.mktemp("full") / "disk", "100m") as disk:
        wanted = chosen("case"), chosen("name")
        answers = run_distributed(runs, disk, *wanted, world_size=2, timeout=240)
        assert answers[0] == answers[1]
        yield disk, answers[0]


@pytest.fixture(scope="module")
def root(found: tuple[Path, dict[str, Any]]) -> Path:
    return found[0]


@pytest.fixture(scope="module")
def ends(found: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return found[1]


def losses(run_dir: Path) -> list[tuple[int, float | None, float | None]]:
    return [(r.step, r.loss, r.grad_norm) for r in step_records(run_dir)]


def noted(run_dir: Path, kind: str) -> list[int]:
    return [event.fields["step"] for event in read_events(run_dir) if event.kind == kind]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.deep) for case in MORE_CASES)], ids=str
)
def test_run_goes_on_as_if_its_save_had_not_failed(case: tuple[str, str], root: Path) -> None:
    name, harm = case
    run_dir = root / f"{name}, {harm}"
    assert losses(run_dir) == losses(root / "unhurt")
    assert len(losses(run_dir)) == STEPS
    checkpoints = run_dir / "checkpoints"
    assert sorted(os.listdir(checkpoints)) == [
        *("iter_0000002", "iter_0000006", "latest_checkpointed_iteration.txt"),
    ]
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)
    assert noted(run_dir, "saved") == [2, STEPS]
    assert noted(run_dir, "save_failed") == [BROKEN]
    ours, theirs = (
        whole_tensors(path / "checkpoints" / "iter_0000006") for path in (run_dir, root / "unhurt")
    )
    same = ours.keys() & theirs.keys()  # Megatron's format stores the optimizer in other pieces
    assert len(same) == len(theirs) or name == "megatron"
    assert [key for key in same if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", ["own shards", pytest.param("background", marks=pytest.mark.deep)])
def test_last_save_waits_for_room(name: str, root: Path, ends: dict[str, Any]) -> None:
    run_dir = root / f"{name}, at the end"
    assert ends[name] == (0, f"iter_{STEPS:07d}")
    assert noted(run_dir, "save_failed") == [STEPS]
    assert noted(run_dir, "saved") == [2, 4, STEPS]
    assert check_folder(run_dir / "checkpoints" / f"iter_{STEPS:07d}").state == "valid"


def test_last_save_that_finds_no_room_ends_the_run_so_that_it_is_started_again(
    root: Path, ends: dict[str, Any]
) -> None:
    code, said = ends["earlier"]
    assert code == AGAIN
    assert said.startswith(f"the last checkpoint, of step {STEPS}, could not be written to {root}")
    assert "No space left on device" in said
    assert "the newest is that of step 4. Free space, then resume; a larger" in said
    assert sorted(os.listdir(root / "earlier" / "checkpoints")) == [
        *("iter_0000002", "iter_0000004", "latest_checkpointed_iteration.txt"),
    ]
    code, said = ends["none"]
    assert code == FAULT
    assert "there is no other one" in said

"""Checkpoints of real runs: in the background, beside side files, and on a disk that is full."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import load_config
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_jobs
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 6
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.micro_batch_size": 2,
    "training.global_batch_size": 8,
    "checkpoint.save_interval": 2,
}
LAYOUT = {"parallel.expert_parallel_size": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saves while it waits, one that saves in the background, and what follows them."""
    root = tmp_path_factory.mktemp("checkpoints")
    background = {**SHAPE, "checkpoint.async_save": True}
    stop = {"megatron.exit-interval": 4}

    def resumed(name: str, source: str, **changes: Any) -> Job:
        load = {"checkpoint.load": str(root / source / "checkpoints")}
        return Job(run_dir=root / name, overrides={**SHAPE, **changes, **load})

    run_jobs(
        [
            # First in the background: the process must be as good for it later as when fresh.
            Job(run_dir=root / "background", overrides={**background, **stop}),
            Job(run_dir=root / "straight", overrides=SHAPE),
            resumed("alone", "background"),
        ],
        world_size=1,
    )
    run_jobs([resumed("two", "background", **LAYOUT)], world_size=2)
    return root


def losses(run_dir: Path) -> dict[int, float]:
    records = read_metrics(run_dir / METRICS_FILE)
    return {r.step: r.loss for r in records if isinstance(r, StepRecord) and r.loss is not None}


def saved_steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("iter_*"))


def test_background_writer_leaves_complete_checkpoints(runs: Path) -> None:
    assert saved_steps(runs / "background") == ["iter_0000002", "iter_0000004"]
    tracker = runs / "background" / "checkpoints" / "latest_checkpointed_iteration.txt"
    assert tracker.read_text() == "4"
    assert losses(runs / "background") == {
        step: loss for step, loss in losses(runs / "straight").items() if step <= 4
    }


@pytest.mark.parametrize("step", [2, 4])
def test_background_writer_writes_the_state_of_the_step_at_which_it_was_called(
    step: int, runs: Path
) -> None:
    folder = Path("checkpoints", f"iter_{step:07d}")
    expected = whole_tensors(runs / "straight" / folder)
    written = whole_tensors(runs / "background" / folder)
    assert written.keys() == expected.keys()
    assert [key for key in written if not torch.equal(written[key], expected[key])] == []


@pytest.mark.parametrize("name", ["alone", "two"])
def test_run_resumed_from_it_follows_the_uninterrupted_one(name: str, runs: Path) -> None:
    straight = losses(runs / "straight")
    expected = {step: straight[step] for step in range(5, STEPS + 1)}
    assert losses(runs / name) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["straight", "background"])
def test_side_files_stand_beside_every_checkpoint(name: str, runs: Path) -> None:
    for folder in (runs / name / "checkpoints").glob("iter_*"):
        step = int(folder.name.removeprefix("iter_"))
        config = load_config(folder / "config.yaml")
        assert config.checkpoint.async_save is (name == "background")
        profile = RoutingProfile.load(folder / PROFILE_FILE)
        assert (profile.first_step, profile.last_step, profile.steps) == (1, step, step)


def test_side_files_of_a_resumed_run_cover_the_steps_before_it(runs: Path) -> None:
    folder = runs / "alone" / "checkpoints" / "iter_0000006"
    profile = RoutingProfile.load(folder / PROFILE_FILE)
    assert (profile.first_step, profile.last_step, profile.steps) == (1, STEPS, STEPS)


# --- a disk that is full -------------------------------------------------------------------------


def fill_the_disk(folder: Path, is_own_disk: bool) -> tuple[str, int]:
    """A rank's side: what stopped the run, and how far it came when resumed."""
    import resource

    from moe_megatron.errors import CheckpointError
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.run.machine import choose_machine

    class FillsTheDisk(Callback):
        """Leaves room for a few small files when step 4 is about to be saved."""

        def on_checkpoint_start(self, step: int) -> None:
            if step < 4:
                return
            if not is_own_disk:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
                return
            filler = folder / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:
                    os.truncate(filler, filler.stat().st_size - 20_000)

    run_dir = folder / "run"
    config = Job(run_dir=run_dir, overrides=SHAPE).config
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=folder.parent / "cache",
        vocab_size=512,
        end_of_document=0,
        run_dir=run_dir,
        callbacks=(FillsTheDisk(),),
    )
    with pytest.raises(CheckpointError) as stopped:
        engine.run(job, choose_machine(config).settings)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "filler").unlink(missing_ok=True)
    load = {"checkpoint.load": str(run_dir / "checkpoints")}
    config = Job(run_dir=run_dir, overrides={**SHAPE, **load}).config
    job = dataclasses.replace(job, config=config, callbacks=())
    outcome = engine.run(job, choose_machine(config).settings)
    world.leave()
    return str(stopped.value), outcome.steps


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A file system of 40 MB; where it cannot be mounted, a folder, and False."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_explained_and_the_run_goes_on_from_the_checkpoint_before(
    small_disk: tuple[Path, bool],
) -> None:
    folder, is_own_disk = small_disk
    ((said, steps),) = run_distributed(fill_the_disk, folder, is_own_disk, world_size=1)
    checkpoints = folder / "run" / "checkpoints"
    if is_own_disk:
        assert said.startswith(f"the disk of {checkpoints} is full or its quota used up")
        assert "Free space or choose another folder with --run-dir" in said
    else:
        assert said.startswith(f"the checkpoint in {checkpoints} could not be written")
        assert "File too large" in said
    assert steps == STEPS
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)

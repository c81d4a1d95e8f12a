"""Checkpoints of real runs: in the background, and beside side files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import load_config
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_jobs, run_on_this_rank
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


def children_after(run_dir: Path) -> list[str]:
    """On a rank: names of the processes that a run with workers for its data has left."""
    import multiprocessing

    run_on_this_rank([Job(run_dir=run_dir, overrides={**SHAPE, "data.num_workers": 1})])
    return [process.name for process in multiprocessing.active_children()]


def test_run_that_has_saved_leaves_no_worker_of_its_data_loader(tmp_path: Path) -> None:
    assert run_distributed(children_after, tmp_path / "run", world_size=1) == [[]]

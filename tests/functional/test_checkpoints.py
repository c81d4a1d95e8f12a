"""Checkpoints of real runs: in the background, and beside side files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import load_config
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, run_on_this_rank, step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 6
SHAPE: dict[str, Any] = {
    **few_steps(STEPS),
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
    return {r.step: r.loss for r in step_records(run_dir) if r.loss is not None}


def saved_steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("iter_*"))


def test_background_writer_leaves_complete_checkpoints(runs: Path) -> None:
    assert saved_steps(runs / "background") == ["iter_0000002", "iter_0000004"]
    tracker = runs / "background" / "checkpoints" / "latest_checkpointed_iteration.txt"
    assert tracker.read_text() == "4"
    assert losses(runs / "background") == {
        step: loss for step, loss in losses(runs / "straight").items() if step <= 4
    }


def slow_saves(root: Path) -> dict[str, list[int]]:
    """On a rank: how many saves are still going on when training does, after each of a run."""
    import multiprocessing
    import time
    from contextlib import suppress

    from megatron.training import async_utils

    from moe_megatron.config import apply_overrides
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.mcore.state import background
    from moe_megatron.run.start import Attachments, start

    write = background._tied
    background._tied = lambda *words, **named: (time.sleep(0.5), write(*words, **named))
    found: dict[str, list[int]] = {}

    class Count(Callback):
        def __init__(self, name: str) -> None:
            self._name, self._counts = name, found.setdefault(name, [])

        def on_checkpoint_end(self, step: int) -> None:
            queue = async_utils._async_calls_queue
            self._counts.append(queue.get_num_unfinalized_calls() if queue else 0)
            if self._name == "fails":
                raise RuntimeError

    for name in ("waits", "fails", "background"):
        changes = {
            **SHAPE,
            "training.train_steps": 2,
            "checkpoint.save_interval": 1,
            "checkpoint.async_save": name != "waits",
            "megatron.mock-data": True,
            "run_dir": str(root / name),
        }
        with suppress(RuntimeError):
            config = apply_overrides(load_config("test_tiny"), changes)
            start(config, attached=Attachments(callbacks=[Count(name)]))
        found[f"left by {name}"] = [child.pid or 0 for child in multiprocessing.active_children()]
    world.leave()
    return found


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    root = tmp_path_factory.mktemp("slow")
    return root, run_distributed(slow_saves, root, world_size=1)[0]


def test_training_goes_on_while_one_save_is_written_in_the_background(slow: Any) -> None:
    _, counts = slow
    assert counts["waits"] == [0, 0]
    assert counts["background"] == [1, 1]  # the second waited for the first


def test_saves_in_a_row_hold_what_those_hold_that_training_waits_for(slow: Any) -> None:
    root, _ = slow
    for step in (1, 2):
        expected, written = (
            whole_tensors(root / name / "checkpoints" / f"iter_{step:07d}")
            for name in ("waits", "background")
        )
        assert written.keys() == expected.keys()
        assert [key for key in written if not torch.equal(written[key], expected[key])] == []


def test_save_of_a_run_that_fails_ends_with_it(slow: Any) -> None:
    _, counts = slow
    assert counts["fails"] == [1]
    assert counts["left by fails"] == counts["left by background"] == []


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

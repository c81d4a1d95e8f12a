"""How far a run is, from its tracker and its journal."""

from pathlib import Path

import pytest

from moe_megatron.config.checkpoint_files import CHECKPOINTS, TRACKER
from moe_megatron.platform.slurm.run_progress import newest_step, read_progress
from moe_megatron.telemetry.journal import note


def save(run_dir: Path, step: object) -> None:
    (run_dir / CHECKPOINTS).mkdir(exist_ok=True)
    (run_dir / CHECKPOINTS / TRACKER).write_text(str(step))


def launch(run_dir: Path, job: str = "7") -> None:
    note(run_dir, "launched", job=job, step=newest_step(run_dir))


def test_folder_without_a_run_has_no_progress(tmp_path: Path) -> None:
    progress = read_progress(tmp_path / "absent", 10, "7")
    assert (progress.step, progress.launched, progress.fruitless) == (None, False, 0)


@pytest.mark.parametrize("content", ["release", "", "12\n3"])
def test_tracker_that_names_no_step_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    save(tmp_path, content)
    assert newest_step(tmp_path) is None


def test_attempt_that_saved_has_progress(tmp_path: Path) -> None:
    launch(tmp_path)
    save(tmp_path, 5)
    launch(tmp_path)
    save(tmp_path, 8)
    progress = read_progress(tmp_path, 10, "7")
    assert (progress.began, progress.step, progress.fruitless) == (5, 8, 0)


def test_attempts_in_a_row_without_a_checkpoint_are_counted(tmp_path: Path) -> None:
    launch(tmp_path)
    save(tmp_path, 5)
    launch(tmp_path)
    launch(tmp_path)
    assert read_progress(tmp_path, 10, "7").fruitless == 2


def test_attempts_of_other_jobs_do_not_count(tmp_path: Path) -> None:
    """A person who submits once more has mended something."""
    launch(tmp_path, job="6")
    launch(tmp_path, job="6")
    launch(tmp_path, job="7")
    assert read_progress(tmp_path, 10, "7").fruitless == 1
    assert read_progress(tmp_path, 10, None).fruitless == 3


def test_attempt_begins_where_it_resumed_if_the_newest_checkpoint_is_damaged(
    tmp_path: Path,
) -> None:
    save(tmp_path, 20)
    launch(tmp_path)
    note(tmp_path, "resumed", step=10)
    progress = read_progress(tmp_path, 100, "7")  # which has written step 20 anew
    assert (progress.began, progress.fruitless) == (10, 0)


def test_restart_within_the_job_does_not_move_where_the_attempt_began(tmp_path: Path) -> None:
    launch(tmp_path)
    save(tmp_path, 20)
    note(tmp_path, "restarting", attempt=2, reason="")
    note(tmp_path, "resumed", step=20)
    note(tmp_path, "resumed", step=20)
    launch(tmp_path)
    note(tmp_path, "resumed", step=20)
    save(tmp_path, 30)
    note(tmp_path, "resumed", step=30)
    progress = read_progress(tmp_path, 100, "7")
    assert (progress.began, progress.fruitless) == (20, 0)


@pytest.mark.parametrize(
    ("kind", "fields"), [("stopping", {"signal": "SIGUSR1"}), ("trained", {"interrupted": True})]
)
def test_stop_is_known_from_the_journal(tmp_path: Path, kind: str, fields: dict) -> None:
    launch(tmp_path)
    note(tmp_path, kind, **fields)
    assert read_progress(tmp_path, 10, "7").stopped
    launch(tmp_path)
    assert not read_progress(tmp_path, 10, "7").stopped
    assert read_progress(tmp_path, 10, "7", stopped=True).stopped


def test_reason_is_that_of_the_end_or_of_the_death(tmp_path: Path) -> None:
    launch(tmp_path)
    note(tmp_path, "rank_died", rank=1, reason="rank 1 was killed by signal 9")
    note(tmp_path, "ended", code=137)
    progress = read_progress(tmp_path, 10, "7")
    assert (progress.code, progress.reason) == (137, "rank 1 was killed by signal 9")

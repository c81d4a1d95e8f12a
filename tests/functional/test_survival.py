"""Real runs of two ranks that are killed: what is left, what is said, and that the end is the same.

The runs are those of the command line, since who starts whom is the subject.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.errors import AGAIN, EXIT_CODE, NO_PROGRESS
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

STEPS = 400
RUN = [
    *("train", "--config", "test_tiny", "--num-processes", 2, "--mock-data"),
    *("--train-iters", STEPS, "--set", "parallel.expert_parallel_size=2"),
    *("--set", "checkpoint.save_interval=50", "--set", "telemetry.console_interval=10"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(moe: Callable[..., Any], place: Path) -> Callable[..., Any]:
    """Starts a run in a folder, with a folder for temporary files of its own."""

    def started(run_dir: str, *words: object) -> Any:
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = str(place / "tmp")
        try:
            named = [] if "--resume" in words else ["--run-dir", run_dir]
            return moe(place, *words, *named)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before

    return started


@pytest.fixture(scope="module")
def untouched(run: Callable[..., Any], place: Path) -> Path:
    program = run("untouched", *RUN)
    assert program.end() == 0, program.output
    return place / "untouched"


def ranks(program: Any) -> dict[int, psutil.Process]:
    """The running ranks of a program."""
    found = {}
    for process in program.family():
        rank = process.environ().get("RANK")
        if rank is not None and process.ppid() == program.process.pid:
            found[int(rank)] = process
    return found


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    return whole_tensors(run_dir / "checkpoints" / f"iter_{STEPS:07d}")


def assert_same_end(run_dir: Path, untouched: Path) -> None:
    ours, theirs = final(run_dir), final(untouched)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    losses = [
        [
            (record.step, record.loss)
            for record in read_metrics(path / METRICS_FILE)
            if "Step" in type(record).__name__
        ]
        for path in (run_dir, untouched)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def kinds(run_dir: Path) -> list[str]:
    return [event.kind for event in read_events(run_dir)]


def leftovers(place: Path) -> list[str]:
    return [name for name in os.listdir(place / "tmp") if not name.startswith("torchinductor")]


def test_killed_rank_is_named_and_the_run_ends_as_if_untouched(
    run: Callable[..., Any], untouched: Path, place: Path
) -> None:
    program = run("rank", *RUN)
    program.wait_for(f"step 70/{STEPS}")
    ranks(program)[1].kill()
    assert program.end() == 0, program.output
    assert "rank 1 was killed by signal 9 (SIGKILL), " in program.output
    assert (
        "last checkpoint at step 50; go on with: moe-megatron train --resume rank; starting "
        in (program.output)
    )
    assert "Traceback" not in program.output
    assert_same_end(place / "rank", untouched)
    died = next(event for event in read_events(place / "rank") if event.kind == "rank_died")
    assert died.fields["rank"] == 1
    noted = kinds(place / "rank")
    assert [noted.count(kind) for kind in ("launched", "attempt", "restarting", "ended")] == [
        *(2, 2, 1, 1)
    ]
    assert "rank 1 was killed" in (place / "rank" / "logs" / "launcher.log").read_text()
    assert program.family() == []
    assert leftovers(place) == []


def test_killed_launcher_takes_its_ranks_along_and_the_run_can_be_resumed(
    run: Callable[..., Any], untouched: Path, place: Path
) -> None:
    program = run("launcher", *RUN)
    program.wait_for(f"step 70/{STEPS}")
    assert len(ranks(program)) == 2
    program.process.kill()
    program.process.wait()
    deadline = time.monotonic() + 60
    while program.family():
        assert time.monotonic() < deadline, program.output
        time.sleep(0.05)
    saved = sorted(os.listdir(place / "launcher" / "checkpoints"))
    again = run("launcher", "train", "--resume", "launcher", "--num-processes", 2)
    assert again.end() == 0, again.output
    assert saved[0] == "iter_0000050"
    assert [name for name in saved if name.startswith("iter_")] == ["iter_0000050"]
    assert_same_end(place / "launcher", untouched)
    assert leftovers(place) == []  # those of the killed launcher are gone, too


def test_folder_of_a_running_job_is_refused_and_its_removal_ends_the_job(
    run: Callable[..., Any], place: Path
) -> None:
    endless = [*RUN, "--train-iters", 1_000_000, "--set", "checkpoint.save_interval=1000000"]
    program = run("mine", *endless)
    program.wait_for("step 10/1000000")
    events = (place / "mine" / "events.jsonl").read_bytes()
    (place / "mine" / "checkpoints" / "iter_0000001").mkdir()
    second = run("mine", "train", "--resume", "mine", "--num-processes", 2)
    assert second.end() == EXIT_CODE, second.output
    assert f"run folder mine belongs to pid {program.process.pid} on " in second.output
    assert (place / "mine" / "events.jsonl").read_bytes() == events
    (place / "mine").rename(place / "removed")
    assert program.end() == EXIT_CODE, program.output
    assert "the run folder mine was removed while the run was writing to it" in program.output
    assert "Traceback" not in program.output
    psutil.wait_procs(program.family(), timeout=5)  # the ranks follow their launcher
    assert program.family() == []


@pytest.mark.deep
def test_run_without_progress_is_given_up(run: Callable[..., Any], place: Path) -> None:
    program = run("stuck", *RUN, "--set", "recovery.max_restarts=1")
    for attempt in (1, 2):
        while "loss" not in program.output.split("starting again")[attempt - 1 :][:1].__str__():
            assert program.process.poll() is None, program.output
            time.sleep(0.05)
        ranks(program)[0].kill()
        while attempt == 1 and "starting again (1 of 1)" not in program.output:
            assert program.process.poll() is None, program.output
            time.sleep(0.05)
    assert program.end() == NO_PROGRESS, program.output
    assert "after 1 restart(s) without a new checkpoint the run is given up" in program.output


@pytest.mark.deep
def test_batch_systems_warning_ends_every_rank_with_a_checkpoint(
    torchrun: Callable[..., Any], place: Path
) -> None:
    script = Path(__file__).parents[2] / "pretrain_moe.py"
    words = [word for word in RUN[1:] if word not in ("--num-processes", 2)]
    program = torchrun(place, 2, script, *words, "--train-iters", 1_000_000, "--run-dir", "usr1")
    program.wait_for("step 10/1000000")
    os.kill(ranks(program)[1].pid, signal.SIGUSR1)
    program.end()
    ended = [event for event in read_events(place / "usr1") if event.kind == "ended"]
    assert [event.fields["code"] for event in ended] == [AGAIN], json.dumps(kinds(place / "usr1"))
    assert "resume with: moe-megatron train --resume usr1" in program.output

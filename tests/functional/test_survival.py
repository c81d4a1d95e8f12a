"""Real runs of two ranks that are killed: what is left, what is said, and that the end is the same.

The runs are those of the command line, since who starts whom is the subject.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import AGAIN, EXIT_CODE, NO_PROGRESS
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

STEPS = 50
CHANGES = {
    "training.train_steps": STEPS,
    "parallel.expert_parallel_size": 2,
    "checkpoint.save_interval": 10,
    "telemetry.console_interval": 5,
}
RUN = [
    *("train", "--config", "test_tiny", "--num-processes", 2, "--mock-data"),
    *(word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")),
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


def train(run_dir: str) -> None:
    """On each rank: the run that nobody kills."""
    from moe_megatron.mcore import world
    from moe_megatron.run.start import start

    start(
        apply_overrides(
            load_config("test_tiny"), {**CHANGES, "megatron.mock-data": True, "run_dir": run_dir}
        )
    )
    world.leave()


@pytest.fixture(scope="module")
def untouched(cache: Path, place: Path) -> Path:
    environment = {"MOE_MEGATRON_CACHE": str(cache)}
    run_distributed(train, str(place / "untouched"), world_size=2, environment=environment)
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


@pytest.mark.deep
def test_killed_rank_and_launcher_are_named_and_the_run_ends_as_if_untouched(
    run: Callable[..., Any], untouched: Path, place: Path
) -> None:
    program = run("killed", *RUN)
    program.wait_for(f"step 15/{STEPS}")
    first = ranks(program)
    first[1].kill()
    program.wait_for("starting again (1 of ")
    program.wait_for("step 25/")
    assert "rank 1 was killed by signal 9 (SIGKILL), " in program.output
    assert re.search(
        r"last checkpoint at step \d+; go on with: moe-megatron train --resume killed; starting ",
        program.output,
    )
    second = ranks(program)
    assert len(second) == 2
    program.process.kill()
    program.process.wait()
    _, alive = psutil.wait_procs([*first.values(), *second.values()], timeout=60)
    assert (alive, program.family()) == ([], []), program.output
    saved = [name for name in os.listdir(place / "killed" / "checkpoints") if "iter" in name]
    assert f"iter_{STEPS:07d}" not in saved

    again = run("killed", "train", "--resume", "killed", "--num-processes", 2)
    assert again.end() == 0, again.output
    assert "Traceback" not in program.output + again.output
    assert_same_end(place / "killed", untouched)
    died = next(event for event in read_events(place / "killed") if event.kind == "rank_died")
    assert died.fields["rank"] == 1
    noted = kinds(place / "killed")
    assert [noted.count(kind) for kind in ("launched", "attempt", "restarting", "ended")] == [
        *(3, 3, 1, 1)
    ]
    assert "rank 1 was killed" in (place / "killed" / "logs" / "launcher.log").read_text()
    assert again.family() == []
    assert leftovers(place) == []  # those of the killed launcher are gone, too


@pytest.mark.deep  # tests/unit/run/test_owner.py has the refusal with processes that do nothing
def test_folder_of_a_running_job_is_refused_and_its_removal_ends_the_job(
    run: Callable[..., Any], place: Path
) -> None:
    words = ("training.train_steps=1000000", "checkpoint.save_interval=1000000")
    words += ("parallel.expert_parallel_size=1",)
    endless = [
        *(1 if word == 2 else word for word in RUN),
        *(word for change in words for word in ("--set", change)),
    ]
    program = run("mine", *endless)
    program.wait_for("step 10/1000000")
    events = (place / "mine" / "events.jsonl").read_bytes()
    (place / "mine" / "checkpoints" / "iter_0000001").mkdir()
    second = run("mine", "train", "--resume", "mine", "--num-processes", 1)
    assert second.end() == EXIT_CODE, second.output
    assert f"run folder mine belongs to pid {program.process.pid} on " in second.output
    assert (place / "mine" / "events.jsonl").read_bytes() == events
    (place / "mine").rename(place / "removed")
    assert program.end() == EXIT_CODE, program.output
    assert "the run folder mine was removed while the run was writing to it" in program.output
    assert "Traceback" not in program.output
    psutil.wait_procs(program.family(), timeout=5)  # the ranks follow their launcher
    assert program.family() == []
    assert not (place / "mine").exists()


@pytest.mark.deep
def test_resume_that_the_ranks_refuse_changes_no_file(run: Callable[..., Any], place: Path) -> None:
    short = ("training.train_steps=4", "checkpoint.save_interval=4")
    first = run("refused", *RUN, *(word for it in short for word in ("--set", it)))
    assert first.end() == 0, first.output

    def content() -> dict[Path, bytes]:
        """All but what tells that a resume was tried: journal, logs and who owned the folder."""
        files = (path for path in (place / "refused").rglob("*") if path.is_file())
        told = {"events.jsonl", "logs", ".owner"}
        return {it: it.read_bytes() for it in files if told.isdisjoint(it.parts)}

    before = content()
    words = ("train", "--resume", "refused", "--num-processes", 2, "--train-iters", 8)
    again = run("refused", *words, "--lr-warmup-fraction", "0.5", "--lr-warmup-iters", 2)
    assert again.end() not in (0, AGAIN), again.output
    assert content().keys() == before.keys()
    assert content() == before
    third = run("refused", *words)
    assert third.end() == 0, third.output
    assert "train_steps: 8" in (place / "refused" / "config.yaml").read_text()


@pytest.mark.deep
def test_own_exit_signal_leaves_the_launchers_stop_as_it_is(
    run: Callable[..., Any], place: Path
) -> None:
    endless = [*RUN, "--set", "training.train_steps=1000000"]
    program = run("signal", *endless, "--exit-signal", "SIGUSR2")
    program.wait_for("step 10/1000000")
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == AGAIN, program.output
    assert "resume with: moe-megatron train --resume signal" in program.output


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
    endless = ("--set", "training.train_steps=1000000", "--run-dir", "usr1")
    program = torchrun(place, 2, script, *words, *endless)
    program.wait_for("step 10/1000000")
    os.kill(ranks(program)[1].pid, signal.SIGUSR1)
    program.end()
    ended = [event for event in read_events(place / "usr1") if event.kind == "ended"]
    assert [event.fields["code"] for event in ended] == [AGAIN], json.dumps(kinds(place / "usr1"))
    assert "resume with: moe-megatron train --resume usr1" in program.output

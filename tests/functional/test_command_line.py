"""`moe-megatron train` and `torchrun pretrain_moe.py` with two processes, from start to Ctrl-C."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import load_config
from moe_megatron.errors import AGAIN
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.testing.jobs import step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MORE = 4
"""Steps that a resumed run makes to its end."""
ENDLESS = [
    *("--train-iters", "100000", "--async-save"),
    *("--set", "checkpoint.save_interval=50000", "training.eval_interval=50000"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A working directory with a configuration, and with an earlier run of its name."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tiny.yaml").write_text(
        "base: test_tiny\n"
        f"data: {{tokenizer: '{tokenizer}', split: '80,20,0'}}\n"
        "training: {eval_steps: 1}\n"
        "parallel: {expert_parallel_size: 2}\n"
        "telemetry: {console_interval: 1}\n"
        "run_dir: runs/tiny\n"
    )
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / METRICS_FILE).write_text(EARLIER)
    return folder


EARLIER = "of a run before\n"


def train(moe: Callable[..., Any], place: Path, *words: object) -> Any:
    return moe(place, "train", "--config", "tiny.yaml", "--num-processes", 2, *words)


def steps_of(run_dir: Path) -> list[int]:
    return [r.step for r in step_records(run_dir)]


def newest_checkpoint(run_dir: Path) -> int:
    return int((run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())


def assert_peaceful(program: Any) -> None:
    assert "Traceback" not in program.output
    assert program.family() == []


# --- a run that Ctrl-C ends ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(moe: Callable[..., Any], place: Path, corpus: Path) -> tuple[Any, int]:
    """A run over real text that Ctrl-C ended, and its exit code; it asked for a folder in use."""
    program = train(moe, place, "--data-path", corpus, *ENDLESS)
    program.wait_for("step 3/100000")
    program.press_ctrl_c()
    return program, program.end()


def test_train_says_what_it_chose(stopped: tuple[Any, int]) -> None:
    for line in (
        "processes: 2 (it was requested)",
        "running: torchrun --nproc-per-node 2 pretrain_moe.py --config runs/tiny-2/config.yaml\n",
        "device: cpu (",
        "communication: gloo (it needs no GPU)",
        "precision: fp32 (it was requested)",
    ):
        assert line in stopped[0].output


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(
    stopped: tuple[Any, int], place: Path
) -> None:
    program, code = stopped
    assert code == AGAIN, program.output
    assert "stopping after this step ..." in program.output
    last = re.search(r"stopped after step (\d+); resume with: (.*)", program.output)
    assert last is not None, program.output
    assert last[2] == "moe-megatron train --resume runs/tiny-2"
    saved = place / "runs" / "tiny-2" / "checkpoints" / f"iter_{int(last[1]):07d}"
    assert RoutingProfile.load(saved / PROFILE_FILE).steps == int(last[1])
    assert_peaceful(program)


def test_new_run_leaves_an_earlier_one_alone(stopped: tuple[Any, int], place: Path) -> None:
    (left,) = (place / "runs" / "tiny").iterdir()
    assert left.read_text() == EARLIER
    assert load_config(place / "runs" / "tiny-2" / "config.yaml").run_dir == "runs/tiny-2"


# --- the same run to its end ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(moe: Callable[..., Any], place: Path, stopped: tuple[Any, int]) -> tuple[Any, int, int]:
    """The run that was stopped and resumed, with its step before and its last one."""
    begun = newest_checkpoint(place / "runs" / "tiny-2")
    end = begun + MORE
    words = [
        "checkpoint.save_interval=2",
        "training.eval_interval=2",
        f"training.train_steps={end}",
    ]
    program = moe(place, "train", "--resume", "runs/tiny-2", "--num-processes", 2, "--set", *words)
    assert program.end() == 0, program.output
    return program, begun, end


def test_resume_continues_without_gap_or_duplicate(
    resumed: tuple[Any, int, int], place: Path
) -> None:
    program, begun, end = resumed
    assert f"resuming after step {begun:,} of {end:,}" in program.output
    run_dir = place / "runs" / "tiny-2"
    assert steps_of(run_dir) == list(range(1, end + 1))
    assert [s.step for s in read_routing(run_dir / ROUTING_FILE)] == list(range(1, end + 1))
    profile = RoutingProfile.load(run_dir / "checkpoints" / f"iter_{end:07d}" / PROFILE_FILE)
    assert (profile.first_step, profile.steps) == (1, end)


def test_train_says_how_it_ended_and_where_everything_is(resumed: tuple[Any, int, int]) -> None:
    program, _, end = resumed
    for line in (
        f"step {end}/{end} | loss ",
        f"validation at step {end} | loss ",
        "dead experts: none",
        f"checkpoint  runs/tiny-2/checkpoints/iter_{end:07d}",
        "metrics     runs/tiny-2/metrics.jsonl",
        "report      runs/tiny-2/report.html",
    ):
        assert line in program.output
    assert "stopped after" not in program.output
    assert_peaceful(program)


def test_train_leaves_records_configuration_and_profile(
    resumed: tuple[Any, int, int], place: Path
) -> None:
    _, begun, end = resumed
    run_dir = place / "runs" / "tiny-2"
    records = read_metrics(run_dir / METRICS_FILE)
    even = {step for step in range(begun + 1, end + 1) if step % 2 == 0}
    assert {r.step for r in records if isinstance(r, EvalRecord)} >= even | {end}
    assert "<html" in (run_dir / "report.html").read_text()[:200]
    config = load_config(run_dir / "config.yaml")
    assert (config.run_dir, config.parallel.expert_parallel_size) == ("runs/tiny-2", 2)
    saved = sorted({begun, *even, end})
    folders = sorted((run_dir / "checkpoints").glob("iter_*"))
    assert [folder.name for folder in folders] == [f"iter_{step:07d}" for step in saved]
    for folder, step in zip(folders, saved, strict=True):
        assert RoutingProfile.load(folder / PROFILE_FILE).steps == step
    assert load_config(folders[-1] / "config.yaml") == config


def test_megatrons_own_output_goes_to_a_file_of_each_rank(
    resumed: tuple[Any, int, int], place: Path
) -> None:
    logs = place / "runs" / "tiny-2" / "logs"
    assert "world size: 2" in (logs / "rank0.log").read_text()
    assert "learning rate:" in (logs / "rank1.log").read_text()
    assert "learning rate:" not in resumed[0].output


# --- other ways to start and to stop -------------------------------------------------------------


@pytest.mark.deep  # tests/unit/platform/test_launch.py has every signal with idle workers
def test_sigterm_to_the_command_ends_the_run_as_ctrl_c_does(
    moe: Callable[..., Any], place: Path
) -> None:
    program = train(moe, place, "--mock-data", *ENDLESS, "--run-dir", "runs/ended")
    program.wait_for("step 3/100000")
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == AGAIN, program.output
    assert "stopping after this step ..." in program.output
    assert "resume with: moe-megatron train --resume runs/ended" in program.output
    assert_peaceful(program)


@pytest.mark.deep  # `train` starts the same script with torchrun's agent
@pytest.mark.parametrize("processes", [1, 2])
def test_bare_torchrun_trains_with_the_script(
    processes: int, torchrun: Callable[..., Any], place: Path
) -> None:
    words = ["--config", "tiny.yaml", "--mock-data", "--train-iters", 3, "--run-dir", "runs/bare"]
    words += ["--set", f"parallel.expert_parallel_size={processes}"]
    program = torchrun(place, processes, ROOT / "pretrain_moe.py", *words)
    assert program.end() == 0, program.output
    assert "step 3/3 | loss " in program.output
    assert steps_of(place / "runs" / "bare") == [1, 2, 3]


@pytest.mark.deep  # tests/unit/platform/test_launch.py has the same with workers that do nothing
def test_second_ctrl_c_ends_at_once(moe: Callable[..., Any], place: Path) -> None:
    program = train(moe, place, "--mock-data", *ENDLESS, "--run-dir", "runs/hasty")
    program.wait_for("step 2/100000")
    program.press_ctrl_c()
    program.wait_for("stopping after this step ...")
    program.press_ctrl_c()
    assert program.end() == 130, program.output
    assert "stopping now" in program.output
    assert_peaceful(program)


@pytest.mark.deep  # tests/unit/platform/test_launch.py has it with workers that do nothing
def test_ctrl_c_before_the_first_step_is_a_line(moe: Callable[..., Any], place: Path) -> None:
    program = train(moe, place, "--mock-data", *ENDLESS, "--run-dir", "runs/early")
    program.wait_for("running: torchrun")
    while len(program.family()) < 3:  # the workers; they need seconds to load
        assert program.process.poll() is None, program.output
        time.sleep(0.02)
    program.press_ctrl_c()
    assert program.end() == 130, program.output
    assert "interrupted before the first step: nothing was saved" in program.output
    assert_peaceful(program)

"""Real runs of two ranks that nvidia-resiliency-ext looks after, and that end as if untouched.

They are killed, stopped and made to raise. `tools/setup.sh resiliency` installs the package.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.errors import AGAIN, EXIT_CODE
from moe_megatron.run.uptime import uptime
from moe_megatron.telemetry.journal import Event, read_events
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(900)]

STEPS = 100
RUN = [
    *("train", "--config", "test_tiny", "--num-processes", 2, "--mock-data"),
    *("--train-iters", STEPS, "--set", "parallel.expert_parallel_size=2"),
    *("--set", "checkpoint.save_interval=20", "--set", "telemetry.console_interval=10"),
]
HARMED = """
import os, signal, sys
from pathlib import Path
from moe_megatron.cli.pretrain import main
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.run.launch import launch

def fail():
    raise ValueError("something is wrong")

class Harms(Callback):
    def on_step_start(self, step):
        harm = HARMS.get(step)
        done = Path(f"harm{step}")
        if os.environ["RANK"] == "1" and harm and not done.exists():
            done.touch()
            harm()

HARMS = {
    30: fail,
    50: lambda: os.kill(os.getpid(), signal.SIGSTOP),
    70: lambda: os.kill(os.getpid(), signal.SIGKILL),
}
HARMS = {step: HARMS[step] for step in map(int, os.environ["HARMS"].split())}

if "RANK" in os.environ:
    sys.exit(main(callbacks=[Harms()]))
run_dir, steps, restart = sys.argv[1:]
settings = {
    "recovery.restart": restart, "parallel.expert_parallel_size": 2, "run_dir": run_dir,
    "recovery.hang_seconds": 15 if restart == "ft_launcher" else None,
    "checkpoint.save_interval": 20, **split_flags(["--mock-data", "--train-iters", steps]),
}
config = apply_overrides(load_config("test_tiny"), settings)
sys.exit(launch(config, [__file__], num_processes=2).code)
"""
MONITORED = [*RUN, "--set", "recovery.restart=ft_launcher"]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Skips the tests here, and not while they are collected, where the package is missing."""
    pytest.importorskip("nvidia_resiliency_ext", reason="tools/setup.sh resiliency installs it")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ft")


@pytest.fixture(scope="module")
def untouched(moe: Callable[..., Any], place: Path) -> dict[str, torch.Tensor]:
    program = moe(place, *RUN, "--run-dir", "untouched")
    assert program.end() == 0, program.output
    return final(place / "untouched")


def harmed(place: Path, run_dir: str, restart: str, steps: str) -> list[object]:
    """The command line of a training that is harmed in these steps."""
    script = place / "harmed.py"
    script.write_text(HARMED)
    return ["env", f"HARMS={steps}", sys.executable, script, run_dir, STEPS, restart]


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    return whole_tensors(run_dir / "checkpoints" / f"iter_{STEPS:07d}")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def ranks(program: Any) -> dict[int, psutil.Process]:
    """The running ranks of a program; its monitors have no rank."""
    found = {}
    for process in program.family():
        if (rank := process.environ().get("RANK")) is not None:
            found[int(rank)] = process
    return found


def events(run_dir: Path, kind: str) -> list[Event]:
    return [event for event in read_events(run_dir) if event.kind == kind]


def assert_one_restart(run_dir: Path) -> None:
    kinds = ("launched", "attempt", "restarting", "ended")
    assert [len(events(run_dir, kind)) for kind in kinds] == [2, 2, 1, 1]
    found = uptime(run_dir)
    assert (found.state, found.account.attempts, found.account.kept_steps) == ("done", 2, STEPS)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        *(f"iter_{step:07d}" for step in range(20, STEPS + 1, 20)),
        "latest_checkpointed_iteration.txt",
    ]


def assert_nothing_is_left(program: Any) -> None:
    psutil.wait_procs(program.family(), timeout=20)
    assert program.family() == []


def test_killed_rank_is_named_and_the_run_ends_as_if_untouched(
    moe: Callable[..., Any], untouched: dict[str, torch.Tensor], place: Path
) -> None:
    program = moe(place, *MONITORED, "--run-dir", "killed")
    program.wait_for(f"step 50/{STEPS}")
    ranks(program)[1].kill()
    assert program.end() == 0, program.output
    assert "running: ft_launcher --nproc-per-node 2 pretrain_moe.py" in program.output
    assert "rank 1 was killed by signal 9 (SIGKILL), " in program.output
    assert "Traceback" not in program.output
    assert_same(final(place / "killed"), untouched)
    assert [event.fields["rank"] for event in events(place / "killed", "rank_died")] == [1]
    assert_one_restart(place / "killed")
    assert_nothing_is_left(program)


def test_stopped_rank_is_killed_by_its_monitor_and_the_run_ends_as_if_untouched(
    start: Callable[..., Any], untouched: dict[str, torch.Tensor], place: Path
) -> None:
    program = start(harmed(place, "stopped", "ft_launcher", "50"), place)
    assert program.end(600) == 0, program.output
    assert_same(final(place / "stopped"), untouched)
    assert_one_restart(place / "stopped")
    (hang,) = events(place / "stopped", "hang")
    assert hang.fields["rank"] == 1
    assert 40 <= hang.fields["step"] <= STEPS, "a heartbeat is up to half a second old"
    words = f"error: rank 1 hung, last seen in step {hang.fields['step']}, and rank "
    assert words in program.output
    assert uptime(place / "stopped").account.lost["hang"] > 15
    log = (place / "stopped" / "logs" / "ft_launcher.log").read_text()
    assert "Section 'step' has been open for" in log
    assert "Timeout is 22.50" in log
    assert_nothing_is_left(program)


def test_stop_and_mistake_keep_their_exit_codes(moe: Callable[..., Any], place: Path) -> None:
    endless = [*MONITORED, "--train-iters", 1_000_000]
    program = moe(place, *endless, "--run-dir", "term")
    program.wait_for("step 10/1000000")
    program.process.terminate()
    assert program.end() == AGAIN, program.output
    assert "resume with: moe-megatron train --resume term" in program.output
    assert [event.fields["code"] for event in events(place / "term", "ended")] == [AGAIN]
    wrong = moe(place, *MONITORED, "--num-layers-per-virtual-pipeline-stage", 7, "--run-dir", "no")
    assert wrong.end() == EXIT_CODE, wrong.output
    assert "Megatron refuses these settings" in wrong.output
    assert events(place / "no", "restarting") == []


def test_killed_launcher_takes_ranks_and_monitors_along(
    moe: Callable[..., Any], place: Path
) -> None:
    program = moe(place, *MONITORED, "--train-iters", 1_000_000, "--run-dir", "launcher")
    program.wait_for("step 10/1000000")
    assert len(program.family()) >= 5, "the launcher, two ranks and two monitors"
    program.process.kill()
    program.process.wait()
    assert_nothing_is_left(program)


def test_ft_launcher_of_ones_own_starts_the_ranks_again(
    start: Callable[..., Any], untouched: dict[str, torch.Tensor], place: Path
) -> None:
    script = Path(__file__).parents[2] / "pretrain_moe.py"
    words = [word for word in MONITORED[1:] if word not in ("--num-processes", 2)]
    program = start(
        [
            *(sys.executable, "-m", "nvidia_resiliency_ext.fault_tolerance.launcher"),
            *("--standalone", "--nproc-per-node", 2, "--max-restarts", 1),
            *("--ft-rank-section-timeouts", "setup:600,step:600,checkpointing:600"),
            *(script, *words, "--run-dir", "own"),
        ],
        place,
    )
    program.wait_for(f"step 50/{STEPS}")
    ranks(program)[1].kill()
    assert program.end() == 0, program.output
    assert_same(final(place / "own"), untouched)
    assert len(events(place / "own", "attempt")) == 2
    assert [event.fields["code"] for event in events(place / "own", "ended")][-1] == 0
    assert_nothing_is_left(program)


def test_rank_that_raises_is_restarted_in_its_process_and_a_killed_one_by_the_launcher(
    start: Callable[..., Any], untouched: dict[str, torch.Tensor], place: Path
) -> None:
    program = start(harmed(place, "failing", "in_process", "30 70"), place)
    assert program.end() == 0, program.output
    assert_same(final(place / "failing"), untouched)
    assert "waitForInput" not in program.output, "a warning each second"
    pids = [event.fields["pid"] for event in events(place / "failing", "attempt")]
    assert len(pids) == 3
    assert pids[0] == pids[1] != pids[2]
    reasons = [event.fields["reason"] for event in events(place / "failing", "rank_died")]
    assert reasons[0] == "rank 1 failed with ValueError: something is wrong"
    assert reasons[1].startswith("rank 1 was killed by signal 9 (SIGKILL)")
    kinds = ("launched", "restarting", "ended")
    assert [len(events(place / "failing", kind)) for kind in kinds] == [2, 2, 1]
    found = uptime(place / "failing")
    assert (found.state, found.account.attempts, found.account.kept_steps) == ("done", 3, STEPS)
    assert found.account.lost_steps >= 2 * 8, "a step is on record when the next one has ended"
    assert_nothing_is_left(program)

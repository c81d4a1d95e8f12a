"""The shipped batch script on a real SLURM: stopped, without one of its nodes, and done.

Two nodes with two ranks each, on this machine. What it trains in several attempts must be, bit for
bit, what the same ranks train in one. `test_slurm_jobs.py` has the time limit.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records
from moe_megatron.testing.saved_tensors import whole_tensors
from moe_megatron.testing.slurm_cluster import SlurmCluster, why_not

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "slurm" / "pretrain_demo_moe.sbatch"
STEPS, SAVED = 40, 15

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := why_not():
        pytest.skip(reason)
    with SlurmCluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def small(corpus: Path, tokenizer: Path) -> dict[str, Any]:
    """What makes the model of the script small."""
    return {
        "model.num_layers": 2,
        "model.hidden_size": 64,
        "moe.num_experts": 4,
        "moe.expert_hidden_size": 64,
        "data.paths": [str(corpus)],
        "data.tokenizer": str(tokenizer),
        "data.sequence_length": 32,
        "training.train_steps": STEPS,
        "training.micro_batch_size": 1,
        "training.global_batch_size": 4,
        "training.eval_interval": None,
        "training.precision": "fp32",
        "checkpoint.save_interval": SAVED,
    }


def words_of(overrides: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in overrides.items()
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]


def train_at_once(overrides: dict[str, Any], run_dir: str) -> None:
    """On each rank: the run without interruption."""
    from moe_megatron.mcore import world
    from moe_megatron.run.start import start

    start(apply_overrides(load_config("demo_moe"), {**overrides, "run_dir": run_dir}))
    world.leave()


@pytest.fixture(scope="module")
def uninterrupted(small: dict[str, Any], cache: Path, tmp_path_factory: Any) -> Path:
    run_dir = tmp_path_factory.mktemp("once") / "run"
    environment = {"MOE_MEGATRON_CACHE": str(cache)}
    run_distributed(train_at_once, small, str(run_dir), world_size=4, environment=environment)
    return run_dir


@pytest.fixture
def submit(
    cluster: SlurmCluster, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Submits the shipped script from the root of the checkout."""
    settings = {
        "MOE_MEGATRON_CACHE": str(cache),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "MOE_RUN": str(tmp_path / "run"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*words: object, options: tuple[str, ...] = ()) -> str:
        log = f"--output={tmp_path / 'batch.log'}"
        return cluster.submit(log, *options, SCRIPT, *words, cwd=ROOT)

    return run


def wait_for_step(run_dir: Path, step: int, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not (run_dir / METRICS_FILE).exists() or last_step(run_dir) < step:
        assert time.monotonic() < deadline, outputs(run_dir)
        time.sleep(0.05)


def launches(run_dir: Path) -> list[int | None]:
    """The step from which each attempt went on."""
    return [it.fields["step"] for it in read_events(run_dir) if it.kind == "launched"]


def wait_for_launches(run_dir: Path, number: int, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while len(launches(run_dir)) < number:
        assert time.monotonic() < deadline, outputs(run_dir)
        time.sleep(0.05)


def last_step(run_dir: Path) -> int:
    with contextlib.suppress(Exception):
        return step_records(run_dir)[-1].step
    return 0


def outputs(run_dir: Path) -> str:
    files = [run_dir.parent / "batch.log", *sorted(run_dir.glob("slurm/**/*.*"))]
    return "\n".join(f"=== {f}\n{f.read_text()[-3000:]}" for f in files if f.is_file())


def assert_same_end(run_dir: Path, other: Path) -> None:
    assert [r.step for r in step_records(run_dir)] == list(range(1, STEPS + 1)), outputs(run_dir)
    assert [r.loss for r in step_records(run_dir)] == [r.loss for r in step_records(other)]
    ours, theirs = (
        whole_tensors(folder / "checkpoints" / f"iter_{STEPS:07d}") for folder in (run_dir, other)
    )
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.deep
def test_script_stopped_in_time_and_then_without_a_node_ends_like_an_uninterrupted_run(
    cluster: SlurmCluster,
    submit: Callable[..., str],
    small: dict[str, Any],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    job = submit(*words_of(small))
    wait_for_step(run_dir, 5)
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # as SLURM does before the limit
    wait_for_launches(run_dir, 2)
    stopped = launches(run_dir)[1]
    assert 5 <= stopped < STEPS - 1
    wait_for_step(run_dir, max(stopped + 1, SAVED + 1))
    cluster.kill_node("n2")
    cluster.wait_for(job, "PENDING", "CONFIGURING", seconds=120)  # "DUE TO NODE FAILURE"
    cluster.start_node("n2")
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert cluster.field(job, "JobState") == "COMPLETED", outputs(run_dir)
    assert cluster.field(job, "Restarts") == "2"
    first, second, third = launches(run_dir)
    assert (first, second) == (None, stopped)
    assert third in (stopped, *range(SAVED, STEPS, SAVED)), "what was saved on the way"
    assert third >= max(stopped, SAVED)
    assert_same_end(run_dir, uninterrupted)

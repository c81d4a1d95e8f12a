"""The shipped batch script on a real SLURM: stopped at its time limit, started again, and done.

Two nodes with two ranks each, on this machine. What it trains in several attempts must be, bit for
bit, what the same ranks train in one.
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
STEPS = 40

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
        "checkpoint.save_interval": 15,
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
def test_script_stopped_at_its_time_limit_ends_like_an_uninterrupted_run(
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
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert cluster.field(job, "JobState") == "COMPLETED", outputs(run_dir)
    assert cluster.field(job, "Restarts") == "1"
    first, second = (e.fields for e in read_events(run_dir) if e.kind == "launched")
    assert first["step"] is None
    assert 5 <= second["step"] < STEPS
    assert_same_end(run_dir, uninterrupted)


@pytest.mark.deep
def test_script_whose_node_died_ends_like_an_uninterrupted_run(
    cluster: SlurmCluster,
    submit: Callable[..., str],
    small: dict[str, Any],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    job = submit(*words_of(small))
    wait_for_step(run_dir, 16)
    cluster.kill_node("n2")
    cluster.wait_for(job, "PENDING", "CONFIGURING", seconds=120)  # "DUE TO NODE FAILURE"
    cluster.start_node("n2")
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert cluster.field(job, "JobState") == "COMPLETED", outputs(run_dir)
    assert cluster.field(job, "Restarts") == "1"
    launched = [e.fields for e in read_events(run_dir) if e.kind == "launched"]
    assert [fields["step"] for fields in launched] == [None, 15]
    assert_same_end(run_dir, uninterrupted)


@pytest.mark.deep
def test_script_ends_like_an_uninterrupted_run_under_a_real_time_limit(
    cluster: SlurmCluster,
    submit: Callable[..., str],
    small: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Of two minutes; SLURM may send its signal up to a minute early."""
    run_dir = tmp_path / "run"
    small |= {"training.train_steps": 4000}
    job = submit(*words_of(small), options=("--time=2", "--signal=B:USR1@30"))
    cluster.wait_for(job, "PENDING", "RUNNING", seconds=30)
    deadline = time.monotonic() + 200
    while cluster.field(job, "Restarts") == "0":
        assert time.monotonic() < deadline, outputs(run_dir)
        time.sleep(0.5)
    assert "time is short" in (tmp_path / "batch.log").read_text()
    first = next(e for e in read_events(run_dir) if e.kind == "launched").fields
    assert first["step"] is None
    assert (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").exists()
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")

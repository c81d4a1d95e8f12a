"""The same training on one GPU: Megatron untouched, with Transformer Engine where it is there."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records
from tests.functional.test_megatron_on_cpu import look_at_torch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

STEPS, BATCH, SEQUENCE, TOP_K = 5, 8, 32, 2
TOKENS = BATCH * SEQUENCE
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
}
JOBS: dict[str, dict[str, Any]] = {
    "bf16": {"training.precision": "bf16", "checkpoint.save_interval": 2},
    "fp32": {"training.precision": "fp32"},
    "drops": {"training.precision": "bf16", "moe.capacity_factor": 1.0},
    "recompute": {"training.precision": "bf16", "training.recompute": "full"},
    "async_save": {
        "training.precision": "bf16",
        "checkpoint.save_interval": 2,
        "checkpoint.async_save": True,
    },
}
ADAPTED: dict[str, dict[str, Any]] = {
    "adapters": {"training.precision": "bf16", "adapter.rank": 4},
    "shared_adapters": {
        "training.precision": "bf16",
        "adapter.rank": 4,
        "adapter.experts": "shared",
        "adapter.dropout": 0.1,
    },
}
FP8: dict[str, Any] = {"training.precision": "fp8"}


@pytest.fixture(scope="module")
def names() -> list[str]:
    has_engine = importlib.util.find_spec("transformer_engine") is not None
    return [*JOBS, "fp8"] if has_engine else [*JOBS]


@pytest.fixture(scope="module")
def runs(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All jobs, in one process on one GPU, and one that goes on from the first."""
    root = tmp_path_factory.mktemp("gpu")
    changes = {**JOBS, **ADAPTED, "fp8": FP8}
    jobs = [Job(run_dir=root / n, overrides={**SHAPE, **changes[n]}) for n in [*names, *ADAPTED]]
    load = {"checkpoint.load": str(root / "bf16" / "checkpoints"), "training.train_steps": 7}
    resumed = Job(run_dir=root / "resumed", overrides={**SHAPE, **JOBS["bf16"], **load})
    run_jobs([*jobs, resumed], world_size=1, timeout=800, fresh=True)
    return root


def losses(run_dir: Path) -> dict[int, float]:
    return {r.step: r.loss for r in step_records(run_dir) if r.loss is not None}


def test_losses_fall_in_every_precision(names: list[str], runs: Path) -> None:
    for name in names:
        curve = losses(runs / name)
        assert list(curve) == list(range(1, STEPS + 1)), name
        assert np.isfinite(list(curve.values())).all(), name
        assert curve[STEPS] < curve[1] - 0.1, name


def test_every_assignment_is_counted_once_or_dropped(names: list[str], runs: Path) -> None:
    for name in names:
        snapshots = list(read_routing(runs / name / ROUTING_FILE))
        assert [s.step for s in snapshots] == list(range(1, STEPS + 1)), name
        for snapshot in snapshots:
            total = snapshot.tokens_per_expert.sum(axis=1) + snapshot.dropped
            assert snapshot.tokens == TOKENS, name
            assert total.tolist() == [TOKENS * TOP_K] * 2, name
            assert snapshot.dropped.any() == (name == "drops"), name


def test_low_precision_stays_near_full_precision(names: list[str], runs: Path) -> None:
    tolerance = {"bf16": 5e-3, "recompute": 5e-3, "async_save": 5e-3, "fp8": 5e-2}
    for name in set(names) & set(tolerance):
        assert losses(runs / name) == pytest.approx(losses(runs / "fp32"), rel=tolerance[name])


def test_adapters_begin_where_the_base_is_and_learn(runs: Path) -> None:
    first = losses(runs / "bf16")[1]
    for name in ADAPTED:
        curve = losses(runs / name)
        assert curve[1] == pytest.approx(first, rel=1e-3), name
        assert np.isfinite(list(curve.values())).all(), name
        assert curve[STEPS] != first, name


def test_checkpoint_is_written_and_continued(runs: Path) -> None:
    for name in ("bf16", "async_save"):
        tracker = runs / name / "checkpoints" / "latest_checkpointed_iteration.txt"
        assert tracker.read_text() == str(STEPS)
    assert list(losses(runs / "resumed")) == [6, 7]


def test_nothing_is_patched_where_there_is_a_gpu(tmp_path: Path) -> None:
    (seen,) = run_distributed(look_at_torch, tmp_path, world_size=1, fresh=True)
    assert seen["hook"] is False
    assert seen["views"] == []
    assert "megatron.core.parallel_state" in seen["real"]
    assert seen["run"]["cuda"] is True
    assert seen["import"]["changed_functions"] == seen["run"]["changed_functions"] == []

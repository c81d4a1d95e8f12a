"""Training over shared memory and over Gloo gives the same losses, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.mcore.cpu.fast import SWITCH
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.jobs import Job, few_steps, run_jobs

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 3
SHAPE: dict[str, Any] = {
    **few_steps(STEPS),
}
EP2: dict[str, Any] = {"parallel.expert_parallel_size": 2}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ep2": EP2,
        "ep2_bf16_recompute": {
            **EP2,
            "training.precision": "bf16",
            "training.recompute": "full",
        },
        "ep2_accumulated_drops": {
            **EP2,
            "training.global_batch_size": 16,
            "moe.capacity_factor": 1.0,
        },
        "tp2": {"parallel.tensor_parallel_size": 2},
    },
    4: {
        "ep4": {"parallel.expert_parallel_size": 4},
        "ep2_dp2_bf16": {**EP2, "training.precision": "bf16"},
        "tp2_ep2": {**EP2, "parallel.tensor_parallel_size": 2},
    },
}
DEEP = {"ep4", "ep2_dp2_bf16"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """Every layout with and without shared memory."""
    root = tmp_path_factory.mktemp("runs")
    names = chosen("name")
    for folder, switch in (("shared_memory", ""), ("gloo", "shared_memory")):
        for world_size, layouts in LAYOUTS.items():
            jobs = [
                Job(run_dir=root / folder / name, overrides={**SHAPE, **layout})
                for name, layout in layouts.items()
                if name in names
            ]
            if jobs:
                run_jobs(jobs, world_size=world_size, environment={SWITCH: switch})
    return root


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.deep if name in DEEP else ())
        for layouts in LAYOUTS.values()
        for name in layouts
    ],
)
def test_losses_and_gradients_are_those_of_gloo_to_the_bit(name: str, root: Path) -> None:
    shared, gloo = (
        [
            (record.loss, record.grad_norm)
            for record in read_metrics(root / switch / name / METRICS_FILE)
            if isinstance(record, StepRecord)
        ]
        for switch in ("shared_memory", "gloo")
    )
    assert len(shared) == STEPS
    assert shared == gloo

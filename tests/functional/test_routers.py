"""Every router that comes with the package trains, and alike under every layout.

Routers whose choice is random or looks at a batch are among them: ranks that share a batch see all
of it. What is random draws other numbers under another layout, so there only the run is compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.routing import find_router, router_names
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.testing.jobs import Job, run_jobs

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

STEPS, BATCH, SEQUENCE, EXPERTS, TOP_K = 3, 8, 32, 4, 2
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.micro_batch_size": 2,
    "training.global_batch_size": BATCH,
    "training.precision": "fp32",
    "training.eval_interval": STEPS,
    "training.eval_steps": 1,
    "data.sequence_length": SEQUENCE,
    "moe.aux_loss_coef": 0.01,
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2-ep2": (4, {"parallel.tensor_parallel_size": 2, "parallel.expert_parallel_size": 2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
    "cp2": (2, {"parallel.context_parallel_size": 2}),
}
OURS = [
    it for it in router_names() if find_router(it).function.__module__.startswith("moe_megatron.")
]
"""Other tests register some, too."""
DECISIVE = ("cosine", "expert_choice", "hash", "relu", "zero_computation")
"""Of each thing that an engine does for a router, one: a gate, a batch and a state, token ids, a
loss, and copies."""


def job(place: Path, router: str, layout: str) -> Job:
    sizes = LAYOUTS[layout][1]
    overrides = {**SHAPE, **sizes, "moe.router": router, "checkpoint.save_interval": None}
    return Job(run_dir=place / f"{router}-{layout}", overrides=overrides)


def train(place: Path, routers: Sequence[str], layouts: Sequence[str]) -> Path:
    for layout in layouts:
        jobs = [job(place, router, layout) for router in routers]
        run_jobs(jobs, world_size=LAYOUTS[layout][0], timeout=600)
    return place


def losses(run: Path) -> list[float]:
    return [it.loss for it in read_metrics(run / METRICS_FILE) if it.loss is not None]


def check(place: Path, router: str, layout: str) -> None:
    one, other = losses(place / f"{router}-one"), losses(place / f"{router}-{layout}")
    assert len(one) == len(other) > STEPS
    if find_router(router).random:
        assert other[0] == pytest.approx(one[0], rel=0.02)
    else:
        assert other == pytest.approx(one, rel=1e-4)
    for snapshot in read_routing(place / f"{router}-{layout}" / ROUTING_FILE):
        assert snapshot.tokens == BATCH * SEQUENCE
        kept = snapshot.tokens_per_expert.sum(axis=1)
        if find_router(router).fixed_number:
            assert (kept == BATCH * SEQUENCE * TOP_K).all()
        else:
            assert (snapshot.assigned == kept + snapshot.dropped).all()


@pytest.fixture(scope="module")
def decisive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("routers"), DECISIVE, ("one", "tp2-ep2"))


@pytest.mark.parametrize("router", DECISIVE)
def test_router_trains_alike_with_its_experts_and_matrices_spread(
    router: str, decisive: Path
) -> None:
    check(decisive, router, "tp2-ep2")


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("all"), OURS, tuple(LAYOUTS))


@pytest.mark.deep
@pytest.mark.parametrize("layout", ["tp2-ep2", "pp2", "cp2"])
@pytest.mark.parametrize("router", OURS)
def test_every_router_trains_alike_under_every_layout(
    router: str, layout: str, all_of_them: Path
) -> None:
    check(all_of_them, router, layout)

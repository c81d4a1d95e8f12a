"""Every balancing method trains in Megatron, and methods that go together train together.

Experts and matrices are spread over ranks, with gradient accumulation and recomputation, so that
what a method remembers or draws meets all that surrounds it.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.routing import LoadBalancer, balancing_names
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, MICRO, BATCH, SEQUENCE, EXPERTS = 2, 2, 8, 32, 4
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH, micro_batch=MICRO),
    "training.recompute": "full",
    "data.sequence_length": SEQUENCE,
    "moe.num_experts": EXPERTS,
    "parallel.tensor_parallel_size": 2,
    "parallel.expert_tensor_parallel_size": 1,
    "parallel.expert_parallel_size": 2,
}
ALL = {"jitter_noise": 0.1, "expert_dropout": 0.1, "z_loss_coef": 0.01}
TOGETHER = {
    "bias, loss and capacity": LoadBalancer(
        ("loss_free", "global_auxiliary_loss"), aux_loss_coef=0.001, capacity_factor=1.0, **ALL
    ),
    "switch, filled": LoadBalancer("switch", pad_to_capacity=True, capacity_factor=0.8, **ALL),
}
EACH = {name: LoadBalancer(name, **ALL) for name in balancing_names() if name != "in_one_file"} | {
    "sinkhorn, sequences and capacity": LoadBalancer(
        ("sinkhorn", "sequence_auxiliary_loss"),
        capacity_factor=1.0,
        drop_policy="position",
        routing_top_k=1,
        **ALL,
    ),
    "second expert by chance, and capacity": LoadBalancer(
        "gshard", second_expert_threshold=0.5, capacity_factor=0.7, **ALL
    ),
}


def job(folder: Path, name: str, balancer: LoadBalancer) -> Job:
    fields = balancer.fields()
    router = fields.pop("router", None)
    if router is not None:
        fields["router"] = router.to_plain()
    return Job(
        run_dir=folder / name,
        overrides={**SHAPE, **{f"moe.{field}": value for field, value in fields.items()}},
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    run_jobs([job(folder, *it) for it in TOGETHER.items()], world_size=2)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("each")
    run_jobs([job(folder, *it) for it in EACH.items()], world_size=4, timeout=500)
    return folder


def check(run: Path, balancer: LoadBalancer, data_ranks: int) -> None:
    losses = [it.loss for it in step_records(run)]
    assert len(losses) == STEPS
    assert all(it is not None and math.isfinite(it) for it in losses)
    fields = balancer.fields()
    top_k, factor = fields.get("top_k", 2), fields.get("capacity_factor")
    for snapshot in read_routing(run / ROUTING_FILE):
        kept = snapshot.tokens_per_expert.sum(axis=1)
        assert (kept + snapshot.dropped == snapshot.assigned).all()
        assert snapshot.tokens == BATCH * SEQUENCE
        if factor is None:
            assert (snapshot.dropped == 0).all()
            continue
        # Each rank of tensor parallelism has half of a micro-batch, and drops by itself.
        share = math.ceil(MICRO * SEQUENCE / 2 * top_k / EXPERTS * factor)
        parts = 2 * data_ranks * (BATCH // (MICRO * data_ranks))
        assert (snapshot.tokens_per_expert <= share * parts).all()
        assert (snapshot.dropped > 0).all()


@pytest.mark.parametrize("name", TOGETHER)
def test_methods_that_go_together_train_together(name: str, quick: Path) -> None:
    check(quick / name, TOGETHER[name], 1)


@pytest.mark.deep
@pytest.mark.parametrize("name", EACH)
def test_every_method_trains(name: str, deep: Path) -> None:
    check(deep / name, EACH[name], 2)

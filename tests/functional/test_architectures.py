"""Every architecture trains in Megatron, with its experts on two processes as on one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, BATCH, SEQUENCE = 3, 8, 32
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH, micro_batch=4),
    "training.learning_rate": 1e-3,
    "checkpoint.save_interval": None,
}
NAMES = ("switch", "mixtral", "glam", "olmoe", "qwen3_moe", "deepseek_v3", "kimi_k2", "gpt_oss")
DECISIVE = {"deepseek_v3", "gpt_oss"}
"""What they have between them that others do not."""
SAME: dict[str, dict[str, Any]] = {
    # noise and a second expert by chance are other numbers on other processes; capacity is an
    # even share of the tokens of a process
    "switch": {"moe.input_jitter": None, "moe.capacity_factor": None},
    "glam": {"moe.router.random_second": False},
}
EP2 = {"parallel.expert_parallel_size": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    place = tmp_path_factory.mktemp("architectures")
    for world_size, layout in ((1, {}), (2, EP2)):
        jobs = [
            Job(
                run_dir=place / f"{name}-{world_size}",
                preset=f"{name}_tiny",
                overrides={**SHAPE, **SAME.get(name, {}), **layout},
            )
            for name in chosen("name")
        ]
        run_jobs(jobs, world_size=world_size)
    return place


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in DECISIVE else pytest.mark.deep) for x in NAMES]
)
def test_it_trains_alike_wherever_its_experts_are(name: str, runs: Path) -> None:
    alone, spread = (step_records(runs / f"{name}-{n}") for n in (1, 2))
    assert [x.step for x in spread] == list(range(1, STEPS + 1))
    losses = [x.loss for x in alone]
    assert [x.loss for x in spread] == pytest.approx(losses, rel=1e-4)
    assert [x.grad_norm for x in spread] == pytest.approx([x.grad_norm for x in alone], rel=1e-3)
    assert losses[-1] < losses[0]
    here, there = (list(read_routing(runs / f"{name}-{n}" / ROUTING_FILE)) for n in (1, 2))
    for one, two in zip(here, there, strict=True):
        assert two.layers == one.layers
        assert two.tokens == one.tokens == BATCH * SEQUENCE
        for snapshot in (one, two):
            kept = snapshot.tokens_per_expert.sum(axis=1)
            assert (snapshot.assigned == kept + snapshot.dropped).all()
    # Rounding may move a token whose best experts tie to seven digits; of the first step, no more.
    moved = abs(here[0].tokens_per_expert - there[0].tokens_per_expert).sum()
    assert moved <= 4 * len(here[0].layers)

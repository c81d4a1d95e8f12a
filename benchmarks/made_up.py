"""A made-up run of any size, for what telemetry costs without a model."""

import time
from pathlib import Path

import numpy as np

from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.metric import PHASES
from moe_megatron.telemetry.values.records import RunInfo, StepRecord, StepRuntime
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def run(layers: int, experts: int, ranks: int, run_dir: Path | None = None) -> RunInfo:
    """A run whose layers are all MoE layers."""
    return RunInfo(
        run_dir=run_dir,
        total_steps=10**6,
        start_step=0,
        num_layers=layers,
        num_experts=experts,
        top_k=8,
        world_size=ranks,
        layers=tuple(range(1, layers + 1)),
        description="",
        expert_ranks=min(64, experts),
        flops_per_token=1e9,
        peak_flops=1e15,
        saves_checkpoints=True,
    )


def step(run: RunInfo, number: int, rng: np.random.Generator) -> tuple[StepRecord, RoutingSnapshot]:
    """A step of it, with random routing of a million tokens."""
    num_layers, tokens = len(run.layers), 2**20
    shares = np.full(run.num_experts, 1 / run.num_experts)
    routing = RoutingSnapshot(
        step=number,
        tokens=tokens,
        top_k=run.top_k,
        layers=run.layers,
        tokens_per_expert=rng.multinomial(tokens * run.top_k, shares, size=num_layers),
        assigned=np.full(num_layers, tokens * run.top_k),
        dropped=np.zeros(num_layers, dtype=np.int64),
        per_layer={name: 1 + rng.random(num_layers) for name in quantity_names()},
    )
    runtime = StepRuntime(
        ended_at=time.monotonic(),
        phase_seconds=dict.fromkeys(PHASES, 0.1),
        rank_compute_seconds=rng.random(run.world_size),
        rank_memory_bytes=rng.random(run.world_size) * 8e10,
        checkpoint_step=0,
        checkpoint_at=time.monotonic(),
    )
    record = StepRecord(
        step=number,
        loss=rng.random(),
        learning_rate=1e-4,
        grad_norm=rng.random(),
        step_seconds=0.5,
        tokens=tokens,
        total_steps=run.total_steps,
        runtime=runtime,
    )
    return record, routing

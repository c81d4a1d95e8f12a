"""A run of 61 layers with 256 experts that never trained, served by the real exporter.

Its numbers are drawn at random, so that dashboards can be looked at in the size of the largest run
without its machines: one layer drifts away from balance, experts die, one process is slow. Single
experts are not exported, as no such run would: they are more series than a scrape may have.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.metric import PHASES, ExpertDetail
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord, StepRuntime
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

LAYERS, NUM_EXPERTS, TOP_K = tuple(range(4, 65)), 256, 8
RANKS, EXPERT_RANKS = 256, 64
TOKENS, PLANNED_STEPS, STEP_SECONDS = 65_536, 1000, 1.0
_SAVED_EVERY = 100
WORST, DEAD = 17, (30, 5)
"""Places of the layer that drifts, and of a layer and its expert that dies."""


def serve_large_run(folder: Path, ended: Callable[[], bool]) -> None:
    """Serve the run and take a step each second until `ended`; the target file is in `folder`."""
    folder.mkdir(parents=True)
    options = ExporterOptions(detail=ExpertDetail.TOPK, max_series=10_000, run_id="made_up")
    sink = PrometheusSink(options)
    sink.start(_run_info(folder))
    try:
        step, saved = 0, time.monotonic()
        while not ended():
            step += 1
            if step % _SAVED_EVERY == 0:
                saved = time.monotonic()
            sink.step(_record(step, saved), _routing(step))
            if step % 20 == 0:
                sink.evaluation(EvalRecord(step=step, split="validation", loss=_loss(step) + 0.05))
            time.sleep(STEP_SECONDS)
    finally:
        sink.close()


def _run_info(folder: Path) -> RunInfo:
    return RunInfo(
        run_dir=folder,
        total_steps=PLANNED_STEPS,
        start_step=0,
        num_layers=len(LAYERS) + 3,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        world_size=RANKS,
        layers=LAYERS,
        description="made up",
        labels={"run_id": "made_up", "model": "61 layers of 256 experts"},
        expert_ranks=EXPERT_RANKS,
        flops_per_token=2e11,
        peak_flops=RANKS * 1e15,
        saves_checkpoints=True,
        hosts=tuple(f"node{rank // 8:02d}" for rank in range(RANKS)),
        tasks=("code", "mathematics", "prose"),
    )


def _loss(step: int) -> float:
    return 2.0 + 9.0 * float(np.exp(-step / 60))


def _record(step: int, saved: float) -> StepRecord:
    rng = np.random.default_rng(step)
    compute = rng.normal(0.6, 0.01, RANKS)
    compute[137] *= 1.0 + 0.3 * min(1.0, step / 200)
    seconds = dict.fromkeys(PHASES, 0.01) | {"forward_backward": 0.8, "optimizer": 0.12}
    runtime = StepRuntime(
        ended_at=time.monotonic(),
        phase_seconds=seconds,
        rank_compute_seconds=compute,
        rank_memory_bytes=rng.normal(6e10, 1e9, RANKS),
        checkpoint_step=step - step % _SAVED_EVERY,
        checkpoint_at=saved,
        dead_experts=_dead(step),
    )
    return StepRecord(
        step=step,
        loss=_loss(step) + float(rng.normal(0, 0.03)),
        learning_rate=3e-4 * min(1.0, step / 50),
        grad_norm=float(rng.gamma(4.0, 0.1)),
        step_seconds=STEP_SECONDS,
        tokens=TOKENS,
        total_steps=PLANNED_STEPS,
        runtime=runtime,
    )


def _dead(step: int) -> np.ndarray:
    dead = np.zeros((len(LAYERS), NUM_EXPERTS), dtype=bool)
    dead[DEAD] = step > 100
    dead[WORST, : step // 20] = True
    return dead


def _routing(step: int) -> RoutingSnapshot:
    """Each layer has favourites that stay, layer `WORST` ever more of them."""
    noise, fixed = np.random.default_rng(step), np.random.default_rng(0)
    favour = fixed.normal(0, 1, (len(LAYERS), NUM_EXPERTS))
    spread = fixed.uniform(0.1, 0.4, len(LAYERS))[:, None]
    spread[WORST] += 2.5 * min(1.0, step / 200)
    logits = spread * favour + noise.normal(0, 0.05, favour.shape)
    logits[_dead(step)] = -np.inf
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    lost = noise.poisson(200 * spread[:, 0] ** 2)
    counts = np.stack(
        [noise.multinomial(TOKENS * TOP_K - n, row) for n, row in zip(lost, shares, strict=True)]
    )
    per_layer = {
        name: spread[:, 0] + noise.normal(1.0, 0.05, len(LAYERS)) for name in quantity_names()
    }
    return RoutingSnapshot(
        step=step,
        tokens=TOKENS,
        top_k=TOP_K,
        layers=LAYERS,
        tokens_per_expert=counts,
        by_task=dict.fromkeys(("code", "mathematics", "prose"), counts // 3),
        assigned=np.full(len(LAYERS), TOKENS * TOP_K),
        dropped=lost,
        per_layer=per_layer,
    )

"""A run folder as moe-megatron writes it, by the real sinks, without training: for the dashboard.

Every step is random but determined by its number, so that a test can check every value.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.telemetry.history import HISTORY_FOLDER, HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sample_files import SampleFiles
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.routing_sample import RoutingSample, SampleHead
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.telemetry.values.top_tokens import MOST_TOKENS, TopTokens

LAYERS, NUM_EXPERTS, TOP_K, TOKENS = (2, 3, 5), 8, 2, 100
NUM_IDS = 10
DEAD_FROM = 20
"""From this step on, no token reaches the first expert of the first layer."""


def step_routing(
    step: int, layers: tuple[int, ...] = LAYERS, num_experts: int = NUM_EXPERTS
) -> RoutingSnapshot:
    """The routing of a step."""
    rng = np.random.default_rng(step)
    dropped = rng.integers(0, 5, len(layers))
    shares = rng.dirichlet(np.full(num_experts, 2.0), len(layers))
    if step >= DEAD_FROM:
        shares[0, 0] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    counts = [
        rng.multinomial(TOKENS * TOP_K - lost, share)
        for lost, share in zip(dropped, shares, strict=True)
    ]
    return RoutingSnapshot(
        step=step,
        tokens=TOKENS,
        top_k=TOP_K,
        layers=layers,
        tokens_per_expert=np.stack(counts),
        assigned=np.full(len(layers), TOKENS * TOP_K),
        dropped=dropped,
        per_layer={"entropy": rng.random(len(layers)), "z_loss": rng.random(len(layers))},
    )


def step_sample(
    step: int,
    layers: tuple[int, ...] = LAYERS,
    num_experts: int = NUM_EXPERTS,
    *,
    tokens: bool = False,
) -> RoutingSample:
    """The sample of a step: of tokens that each have two experts of every layer.

    With `tokens` their ids are 0 to 9 by turns, and recorded.
    """
    rng = np.random.default_rng(step)
    maps = np.zeros((len(layers), TOKENS, num_experts), dtype=np.int32)
    for chosen in maps.reshape(-1, num_experts):
        chosen[rng.choice(num_experts, TOP_K, replace=False)] = 1
    head = SampleHead(
        step=step,
        tokens=TOKENS,
        layers=layers,
        num_experts=num_experts,
        expert_bias=rng.normal(size=(len(layers), num_experts)).astype(np.float32),
    )
    return RoutingSample(
        head=head,
        together=np.stack([it.T @ it for it in maps]),
        flow=np.stack([one.T @ other for one, other in pairwise(maps)]),
        tokens=tuple(map(_top_tokens, layers, maps)) if tokens else (),
    )


def _top_tokens(layer: int, map_TE: npt.NDArray[np.int32]) -> TopTokens:
    of_tokens = np.zeros((NUM_IDS, map_TE.shape[1]), dtype=np.int32)
    np.add.at(of_tokens, np.arange(TOKENS) % NUM_IDS, map_TE)
    ids = np.full((map_TE.shape[1], MOST_TOKENS), -1, dtype=np.int32)
    counts, in_layer = np.zeros((2, *ids.shape), dtype=np.int32)
    for expert, mine in enumerate(of_tokens.T):
        order = [it for it in np.argsort(-mine, kind="stable").tolist() if mine[it]]
        ids[expert, : len(order)] = order
        counts[expert, : len(order)] = mine[order]
        in_layer[expert, : len(order)] = of_tokens.sum(axis=1)[order]
    assigned = of_tokens.sum(axis=0, dtype=np.int32)
    return TopTokens(layer=layer, assigned=assigned, ids=ids, counts=counts, in_layer=in_layer)


def step_record(step: int) -> StepRecord:
    """What the loop says of a step; every other one knows no gradient norm."""
    return StepRecord(
        step=step,
        loss=9.0 / step,
        learning_rate=1e-3 * step,
        grad_norm=None if step % 2 else 1.0,
        step_seconds=0.5,
        tokens=1000,
        total_steps=300,
    )


def write_run(
    run_dir: Path,
    steps: int = 40,
    *,
    history: int | None = None,
    log: bool = True,
    layers: tuple[int, ...] = LAYERS,
    num_experts: int = NUM_EXPERTS,
    samples: int = 0,
    tokens: bool = False,
) -> Path:
    """Write the folder of a run that has made some steps.

    Args:
        run_dir: The folder, which need not exist.
        steps: How many steps it has made.
        history: Up to which step they are in the history, all by default; 0 for no history.
        log: Whether routing.jsonl is written.
        layers: Numbers of the MoE layers.
        num_experts: Experts in each.
        samples: Steps from one sample to the next; 0 for none.
        tokens: Whether samples have the tokens of experts.

    Returns:
        The folder.
    """
    info = RunInfo(
        run_dir=run_dir,
        total_steps=300,
        start_step=0,
        num_layers=max(layers),
        num_experts=num_experts,
        top_k=TOP_K,
        world_size=1,
        layers=layers,
        quantities=("entropy", "z_loss"),
        description="",
    )
    kept = steps if history is None else history
    metrics = MetricsLog()
    routing: list[RoutingLog | HistorySink] = [RoutingLog()] if log else []
    if kept:
        routing.append(HistorySink(run_dir / HISTORY_FOLDER, flush_seconds=10.0))
    kept_samples = SampleFiles()
    for sink in (metrics, *routing, kept_samples):
        sink.start(info)
    for step in range(1, steps + 1):
        metrics.step(step_record(step), None)
        snapshot = step_routing(step, layers, num_experts)
        for sink in routing:
            if step <= kept or isinstance(sink, RoutingLog):
                sink.step(step_record(step), snapshot)
        if samples and step % samples == 0:
            kept_samples.sample(step_sample(step, layers, num_experts, tokens=tokens))
    metrics.evaluation(EvalRecord(step=steps, split="validation", loss=3.0))
    for sink in (metrics, *routing):
        sink.close()
    return run_dir

"""Makes the snapshot of one step from the totals of all ranks. It does not know how they count."""

from collections.abc import Sequence
from dataclasses import replace

from moe_megatron.mcore.measure.counters import StepTotals
from moe_megatron.telemetry.catalog import quantities as registered_quantities
from moe_megatron.telemetry.quantity import Quantity, StepSums
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def make_snapshot(
    step: int,
    layers: tuple[int, ...],
    top_k: int,
    totals: StepTotals,
    quantities: Sequence[Quantity] | None = None,
    tasks: Sequence[str] = (),
) -> RoutingSnapshot:
    """Make the snapshot of one step from its sums.

    assigned = tokens * top_k + beyond_top_k.

    Args:
        step: 1-based step.
        layers: Global 1-based numbers of the MoE layers.
        top_k: Number of experts per token that the router aims at.
        totals: Sums over the global batch.
        quantities: The quantities that were measured; by default all registered ones.
        tasks: Names of the tasks that were counted by themselves.

    Raises:
        ConfigError: A derived quantity is not one value per layer.
    """
    tokens = totals.tokens
    assert (tokens == tokens[0]).all(), f"layers routed different numbers of tokens: {tokens}"
    num_tokens = int(tokens[0])
    reached = totals.tokens_per_expert.sum(axis=1)
    assigned = num_tokens * top_k + totals.beyond_top_k
    assert (reached <= assigned).all(), (
        f"more assignments reached experts, {reached}, than routers asked for, {assigned} "
        f"({num_tokens} tokens, top_k {top_k})"
    )
    per_token = 1.0 / max(num_tokens, 1)
    sums = StepSums(
        tokens=num_tokens,
        top_k=top_k,
        tokens_per_expert=totals.tokens_per_expert,
        assigned=assigned,
        prob_sums=totals.prob_sums,
        means={name: values * per_token for name, values in totals.sums.items()},
    )
    chosen = registered_quantities() if quantities is None else quantities
    snapshot = sums.snapshot(step, layers, chosen)
    if totals.by_task is None:
        return snapshot
    return replace(snapshot, by_task=dict(zip(tasks, totals.by_task, strict=True)))

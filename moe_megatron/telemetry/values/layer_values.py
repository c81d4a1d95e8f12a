"""The gauges of the catalog that have one value per layer, and how a value differs between layers.

Prometheus, TensorBoard and W&B show them under the same names. It does not know how they are sent.
"""

import math

import numpy as np

from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.metric import LAYER_QUANTILES
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.values.expert_load import BoolArray, load_share, part_of_maximum
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def layer_values(
    routing: RoutingSnapshot, dead: BoolArray | None = None
) -> dict[str, Float64Array]:
    """The values of all layers, [L], by the name of the metric; NaN where there is none.

    Args:
        routing: One step.
        dead: The dead experts [L, E], by `RecentUse`; without it, those of this step alone.
    """
    dead = routing.dead_expert_mask() if dead is None else dead
    load = routing.relative_load
    return {
        "moe_load_entropy_ratio": load_entropy_ratio(routing.tokens_per_expert),
        "moe_expert_load_max_ratio": load.max(axis=1),
        "moe_expert_load_min_ratio": load.min(axis=1),
        "moe_expert_load_stddev_ratio": load.std(axis=1),
        "moe_experts_dead": dead.sum(axis=1).astype(np.float64),
        "moe_tokens_dropped_ratio": routing.drop_rate,
        "moe_experts_per_token": routing.experts_per_token,
        **{
            quantity.gauge: shown_values(quantity, routing)
            for quantity in quantities()
            if quantity.gauge is not None and quantity.name in routing.per_layer
        },
    }


def across_layers(values: Float64Array) -> Float64Array:
    """The `LAYER_QUANTILES` of a value of each layer [L], without NaN; all NaN if there is none."""
    known = values[np.isfinite(values)]
    quantiles = list(LAYER_QUANTILES.values())
    return np.quantile(known, quantiles) if known.size else np.full(len(quantiles), np.nan)


def shown_values(quantity: Quantity, load: RoutingSnapshot | RoutingProfile) -> Float64Array:
    """The values of a quantity that charts, tables and gauge show; NaN if not measured. [L]"""
    values = load.per_layer.get(quantity.name)
    if values is None:
        return np.full(len(load.layers), np.nan)
    return part_of_maximum(values, load.num_experts) if quantity.part_of_maximum else values


def load_entropy_ratio(tokens_per_expert: Int64Array) -> Float64Array:
    """-sum_e s_e ln s_e / ln E, entropy of the load shares over its maximum; 1.0 is even. [L]"""
    num_experts = tokens_per_expert.shape[1]
    if num_experts == 1:
        return np.ones(len(tokens_per_expert))
    share = load_share(tokens_per_expert)
    information = -np.log(np.where(share > 0, share, 1.0))
    entropy: Float64Array = (share * information).sum(axis=1)
    return entropy / math.log(num_experts)

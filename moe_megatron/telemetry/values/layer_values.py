"""The gauges of the catalog that have one value a layer, computed from one step's routing.

Prometheus, TensorBoard and W&B show them under the same names. It does not know how they are sent.
"""

import math

import numpy as np

from moe_megatron.telemetry.values.expert_load import load_share
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


def layer_values(routing: RoutingSnapshot) -> dict[str, Float64Array]:
    """The value of each layer by the name of the metric, each [L]; NaN where there is none."""
    load = routing.relative_load
    return {
        "moe_router_entropy_ratio": routing.entropy_ratio,
        "moe_load_entropy_ratio": load_entropy_ratio(routing.tokens_per_expert),
        "moe_expert_load_max_ratio": load.max(axis=1),
        "moe_expert_load_min_ratio": load.min(axis=1),
        "moe_expert_load_stddev_ratio": load.std(axis=1),
        "moe_experts_dead": routing.dead_expert_mask().sum(axis=1).astype(np.float64),
        "moe_tokens_dropped_ratio": routing.drop_rate,
        "moe_router_aux_loss": routing.aux_loss,
        "moe_router_z_loss": routing.z_loss,
    }


def load_entropy_ratio(tokens_per_expert: Int64Array) -> Float64Array:
    """Entropy of the load over its maximum ln E; 1.0 is even. [L]"""
    num_experts = tokens_per_expert.shape[1]
    if num_experts == 1:
        return np.ones(len(tokens_per_expert))
    share = load_share(tokens_per_expert)
    surprise = -np.log(np.where(share > 0, share, 1.0))
    entropy: Float64Array = (share * surprise).sum(axis=1)
    return entropy / math.log(num_experts)

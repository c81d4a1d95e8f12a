"""The maths of routing: pure functions of tensors, the same for every model and every engine.

Words are Megatron's: `logits` leave the gate, a score function makes `scores` of them, `probs` are
the combine weights, and `routing_map` says which token goes to which expert. Nothing here holds
parameters or state, or knows configurations, processes or Megatron itself.
"""

from moe_megatron.routing.capacity import drop_over_capacity, expert_capacity
from moe_megatron.routing.losses import (
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)
from moe_megatron.routing.sparse_mixer import route_sparse_mixer
from moe_megatron.routing.top_k import Routing, balancing_map, route_top_k, router_distribution

__all__ = [
    "Routing",
    "balancing_map",
    "drop_over_capacity",
    "expert_capacity",
    "load_balancing_loss",
    "route_sparse_mixer",
    "route_top_k",
    "router_distribution",
    "router_entropy",
    "sequence_load_balancing_loss",
    "z_loss",
]

"""Capacity: how many tokens an expert accepts, and which it drops when more are sent to it.

The rule is that of GShard (arXiv:2006.16668) and Switch (arXiv:2101.03961). A dropped assignment
contributes nothing to the token, whose residual stream passes on unchanged.
"""

import math

import torch

from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing

DROP_POLICIES = ("probs", "position")


def expert_capacity(num_tokens: int, top_k: int, num_experts: int, capacity_factor: float) -> int:
    """C = ceil(num_tokens * top_k / num_experts * capacity_factor): tokens that an expert accepts.

    Args:
        num_tokens: Tokens that are routed together.
        top_k: Target number of experts for each token.
        num_experts: Experts that share the assignments.
        capacity_factor: With 1.0 only perfectly balanced assignments fit.
    """
    return math.ceil(num_tokens * top_k / num_experts * capacity_factor)


def drop_over_capacity(routing: Routing, capacity: int, policy: str = "probs") -> Routing:
    """Drop the assignments that exceed each expert's capacity; the other weights do not change.

    Args:
        routing: The routing before dropping.
        capacity: Tokens that each expert accepts.
        policy: Which tokens an expert keeps: "probs", those with the largest combine weights, or
            "position", the first ones.

    Raises:
        ConfigError: The policy is unknown.
    """
    if policy not in DROP_POLICIES:
        raise ConfigError(
            f"the drop policy must be one of {', '.join(DROP_POLICIES)}, not '{policy}'."
        )
    if capacity >= routing.indices.shape[0]:
        return routing
    if policy == "probs":
        best_CE = torch.topk(routing.probs.detach(), capacity, dim=0).indices
        accepted_TE = torch.zeros_like(routing.routing_map).scatter(0, best_CE, True)
    else:
        accepted_TE = routing.routing_map.cumsum(dim=0) <= capacity
    return routing.keeping(accepted_TE)

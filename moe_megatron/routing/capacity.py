"""Capacity: how many tokens an expert accepts, and which it drops when more are sent to it.

The rule is that of GShard (arXiv:2006.16668) and Switch. A dropped assignment adds nothing to the
token, which keeps its residual stream.
"""

import math

import torch

from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing

DROP_POLICIES = ("probs", "position")


def expert_capacity(num_tokens: int, top_k: int, num_experts: int, capacity_factor: float) -> int:
    """ceil(num_tokens * top_k / num_experts * capacity_factor): tokens that one expert accepts.

    Args:
        num_tokens: Tokens that are routed together.
        top_k: Experts that the router aims at for each token.
        num_experts: Experts that share the assignments.
        capacity_factor: 1.0 has room for perfectly balanced assignments only.
    """
    return math.ceil(num_tokens * top_k / num_experts * capacity_factor)


def drop_over_capacity(routing: Routing, capacity: int, policy: str = "probs") -> Routing:
    """Drop what exceeds each expert's capacity. The weights that stay do not change.

    Args:
        routing: Where the tokens want to go.
        capacity: Tokens that each expert accepts.
        policy: "probs" keeps those with the largest combine weights, "position" the first.

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

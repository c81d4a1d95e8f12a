"""Capacity: how many tokens an expert accepts, and which it drops when more are sent to it.

The rule is that of GShard (arXiv:2006.16668) and Switch (arXiv:2101.03961). A dropped assignment
contributes nothing to the token, whose residual stream passes on unchanged. Ranks do not know each
other here: each drops among the tokens that it has.
"""

import math

import torch
from torch import Tensor

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


def capacity_of(padding_T: Tensor, top_k: int, num_experts: int, capacity_factor: float) -> Tensor:
    """The `expert_capacity` of the tokens that are not padding, float64 [], counted on the device.

    Args:
        padding_T: bool, True for padding.
        top_k: As for `expert_capacity`, and so are the others.
        num_experts: E.
        capacity_factor: Multiple of an even share.
    """
    return ((~padding_T).sum().double() * top_k / num_experts * capacity_factor).ceil()


def drop_over_capacity(
    routing: Routing,
    capacity: int | Tensor,
    policy: str = "probs",
    *,
    order_T: Tensor | None = None,
    padding_T: Tensor | None = None,
) -> Routing:
    """Drop the assignments that exceed each expert's capacity; the other weights do not change.

    Args:
        routing: The routing before dropping.
        capacity: Tokens that each expert accepts.
        policy: Which tokens an expert keeps: "probs", those with the largest combine weights, and
            of equal ones the first, or "position", the first ones.
        order_T: int64, the rows in the order in which tokens are first; None: they are in order.
        padding_T: bool, True for tokens that take no place and are dropped; None: there are none.

    Raises:
        ConfigError: The policy is unknown.
    """
    if policy not in DROP_POLICIES:
        raise ConfigError(
            f"the drop policy must be one of {', '.join(DROP_POLICIES)}, not '{policy}'."
        )
    num_tokens = routing.indices.shape[0]
    if padding_T is None and isinstance(capacity, int) and capacity >= num_tokens:
        return routing
    wanted_TE = routing.routing_map
    if padding_T is not None:
        wanted_TE = wanted_TE & ~padding_T.unsqueeze(-1)
    if order_T is None:
        order_T = torch.arange(num_tokens, device=wanted_TE.device)
    in_order_TE = wanted_TE[order_T]
    if policy == "position":
        accepted_TE = in_order_TE & (in_order_TE.cumsum(dim=0) <= capacity)
    else:
        weights_TE = routing.probs.detach()[order_T].masked_fill(~in_order_TE, -torch.inf)
        best_TE = weights_TE.argsort(dim=0, descending=True, stable=True)
        places_T1 = torch.arange(num_tokens, device=wanted_TE.device).unsqueeze(-1)
        rank_TE = torch.empty_like(best_TE).scatter(0, best_TE, places_T1.expand_as(best_TE))
        accepted_TE = in_order_TE & (rank_TE < capacity)
    return routing.keeping(torch.empty_like(accepted_TE).index_copy(0, order_T, accepted_TE))


def filled(map_TE: Tensor, capacity: int) -> Tensor:
    """A map with exactly `capacity` tokens of every expert: its own, and then the first others.

    Args:
        map_TE: bool, at most so many tokens of each expert.
        capacity: At most T.
    """
    first_CE = map_TE.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[:capacity]
    return torch.zeros_like(map_TE).scatter(0, first_CE, True)

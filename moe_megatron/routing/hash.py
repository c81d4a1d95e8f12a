"""Hash routing: the token's id decides, and nothing is learned."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k

_PRIME = 2_147_483_647


@register_router("hash")
def route_hash(
    logits_TE: Tensor,
    *,
    top_k: int,
    token_ids: Tensor,
    salt: Annotated[int, Within(above=-_PRIME, below=_PRIME)] = 0,
) -> Routing:
    """Experts h(id), h(id) + s(id), h(id) + 2 s(id), ... modulo E, each with the weight 1 / top_k.

    h is a random hash of the id, and s, another one, is 1 or -1 (hash layers, arXiv:2106.04426).
    Every occurrence of a word goes to the same experts, so a frequent word makes for uneven load.

    Args:
        logits_TE: Output of the gate, which decides nothing and gets no gradient from here.
        top_k: Experts for each token.
        token_ids: int64 [T].
        salt: Another salt is another hash.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    mixed_T = (token_ids + 1 + salt) * 48_271 % _PRIME
    first_T, turn_T = mixed_T % num_experts, mixed_T * 69_621 % _PRIME
    places_K = torch.arange(top_k, device=token_ids.device)
    direction_T1 = torch.where(turn_T % 2 == 0, 1, -1).unsqueeze(-1)
    indices_TK = (first_T.unsqueeze(-1) + direction_T1 * places_K) % num_experts
    # Not connected to the gate's output, its parameters would have no gradient at all.
    weights_TK = 1 / top_k + 0 * logits_TE.gather(-1, indices_TK)
    return Routing.of_indices(indices_TK, weights_TK, num_experts)

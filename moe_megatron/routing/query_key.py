"""A router by attention: the token asks, and experts answer with keys that they have learned."""

import math
from typing import Annotated

from torch import Tensor
from torch.nn import functional

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import route_top_k


def _attend(hidden_TH: Tensor, *, weight: Tensor, query: Tensor) -> Tensor:
    """s_e = (Q x) k_e / sqrt(D), as in attention; `weight` holds the keys."""
    queries_TD = functional.linear(hidden_TH, query)
    return functional.linear(queries_TD, weight) / math.sqrt(weight.shape[-1])


def _tensors(num_experts: int, hidden_size: int, *, width: int) -> dict[str, Parameter]:
    return {
        "weight": Parameter((num_experts, width)),
        "query": Parameter((width, hidden_size)),
    }


@register_router("query_key", gate=Gate(_attend, _tensors))
def route_query_key(
    logits_TE: Tensor, *, top_k: int, width: Annotated[int, Within(least=1)] = 64
) -> Routing:
    """Choose the keys that answer best, and weigh by the softmax over all of them.

    It is scaled dot-product attention (arXiv:1706.03762) of a token over experts, cut to the top_k.

    Args:
        logits_TE: Scaled products of query and keys.
        top_k: Experts for each token.
        width: Size of queries and keys.

    Raises:
        ConfigError: top_k is not in 1..E, or the width is below 1.
    """
    return route_top_k(logits_TE, top_k=top_k, pre_softmax=True)

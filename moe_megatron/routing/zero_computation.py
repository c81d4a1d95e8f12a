"""Experts that compute nothing: some drop a token, some hand it on as it is."""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.description import Distribution
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k

_Number = Annotated[int, Within(least=0)]


def _linear(hidden_TH: Tensor, *, weight: Tensor) -> Tensor:
    return functional.linear(hidden_TH, weight)


def _tensors(
    num_experts: int, hidden_size: int, *, null_experts: int, copy_experts: int
) -> dict[str, Parameter]:
    return {"weight": Parameter((num_experts + null_experts + copy_experts, hidden_size))}


def _real_alone(options: Any) -> Distribution:
    """P over the experts that compute, given that one of them is chosen."""
    nothing = options.null_experts + options.copy_experts

    def distribution(logits_TE: Tensor) -> Tensor:
        real_TE = logits_TE[:, : logits_TE.shape[1] - nothing]
        return torch.softmax(real_TE, dim=-1, dtype=torch.float32)

    return distribution


@register_router(
    "zero_computation", fixed_number=False, gate=Gate(_linear, _tensors), distribution=_real_alone
)
def route_zero_computation(
    logits_TE: Tensor, *, top_k: int, null_experts: _Number = 2, copy_experts: _Number = 1
) -> Routing:
    """Top-k over experts that compute, experts that give 0, and experts that give x.

    Null experts are those of AdaMoE (arXiv:2406.13233), copies those of MoE++ (arXiv:2410.07348).
    Weights are the softmax over all of them. A token that chooses null experts costs less; none
    of them is sent anywhere.

    Args:
        logits_TE: [T, E + null + copies]: of the gate, which has rows for all.
        top_k: Choices of each token, at most.
        null_experts: Experts that give 0.
        copy_experts: Experts that give the token's hidden state.

    Raises:
        ConfigError: top_k is not in 1..E, or a number is negative.
    """
    num_experts = logits_TE.shape[-1] - null_experts - copy_experts
    check_top_k(top_k, num_experts)
    probs_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.float32)
    chosen_TK = probs_TE.topk(top_k, dim=-1).indices
    map_TE = torch.zeros_like(probs_TE, dtype=torch.bool).scatter(1, chosen_TK, True)
    probs_TE = (probs_TE * map_TE).type_as(logits_TE)
    routing = Routing.of_map(probs_TE[:, :num_experts], map_TE[:, :num_experts])
    return routing.copying(probs_TE[:, num_experts + null_experts :].sum(dim=-1))

"""Cosine routing: tokens and experts meet on a sphere, so that no expert wins by its length."""

from typing import Annotated

from torch import Tensor
from torch.nn import functional

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import route_top_k

_LEAST_TEMPERATURE = 0.01


def _cosine(
    hidden_TH: Tensor, *, weight: Tensor, projection: Tensor, temperature: Tensor
) -> Tensor:
    """s_e = cos(P x, w_e) / tau; tau is learned, and at least 0.01."""
    projected_TD = functional.normalize(functional.linear(hidden_TH, projection), dim=-1)
    cosines_TE = functional.linear(projected_TD, functional.normalize(weight, dim=-1))
    return cosines_TE / temperature.clamp(min=_LEAST_TEMPERATURE)


def _tensors(num_experts: int, hidden_size: int, *, width: int) -> dict[str, Parameter]:
    return {
        "weight": Parameter((num_experts, width)),
        "projection": Parameter((width, hidden_size)),
        "temperature": Parameter((1,), first=0.07),
    }


@register_router("cosine", gate=Gate(_cosine, _tensors))
def route_cosine(
    logits_TE: Tensor, *, top_k: int, width: Annotated[int, Within(least=1)] = 16
) -> Routing:
    """Choose by s_e = cos(P x, w_e) / tau, and weigh by its softmax (X-MoE, arXiv:2204.09179).

    Args:
        logits_TE: s, the output of the cosine gate.
        top_k: Experts for each token.
        width: Dimensions of the sphere; the paper takes half the number of experts.

    Raises:
        ConfigError: top_k is not in 1..E, or the width is below 1.
    """
    return route_top_k(logits_TE, top_k=top_k, pre_softmax=True)

"""Noisy top-k: noise of a learned size lets experts win that are almost as good (Shazeer)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from moe_megatron.config import MoEConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import route_top_k


def _noisy(hidden_TH: Tensor, *, weight: Tensor, noise: Tensor, training: bool) -> Tensor:
    """H(x) = x W^T + N(0, 1) * softplus(x V^T), the second term in training alone."""
    logits_TE = functional.linear(hidden_TH, weight)
    if not training:
        return logits_TE
    size_TE = functional.softplus(functional.linear(hidden_TH, noise))
    return logits_TE + torch.randn_like(logits_TE) * size_TE


def _tensors(num_experts: int, hidden_size: int) -> dict[str, Parameter]:
    return {
        "weight": Parameter((num_experts, hidden_size)),
        "noise": Parameter((num_experts, hidden_size)),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyTopKOptions:
    """None; two experts at least."""

    SECTION: ClassVar[str] = "moe.router"

    def check(self, moe: MoEConfig) -> None:
        """Check that the softmax over the chosen experts is one of several.

        Raises:
            ConfigError: Tokens have one expert.
        """
        if moe.top_k == 1:
            raise ConfigError(
                "the router 'noisy_top_k' needs moe.top_k 2 or more: a softmax over the one chosen "
                "expert is always 1 and would give the router no gradient."
            )


@register_router("noisy_top_k", options=NoisyTopKOptions, gate=Gate(_noisy, _tensors), random=True)
def route_noisy_top_k(logits_TE: Tensor, *, top_k: int) -> Routing:
    """Weights are the softmax over the top_k largest H(x) (arXiv:1701.06538, equations 3 to 5).

    Args:
        logits_TE: H(x), the output of the noisy gate.
        top_k: Experts for each token, at least 2.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    return route_top_k(logits_TE, top_k=top_k)

"""SparseMixer-v2: experts chosen one after another, at random in training (arXiv:2409.12136).

Top-k routing gives the choice itself no gradient. Here each choice is a sample of the softmax. A
sample other than the best expert has its full weight with probability 1/4 and a third of it
otherwise, which estimates the missing gradient (Heun's third-order method). Outside training the
best expert is taken. PhiMoE uses this router; the formulas are those of its published code.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k

_FULL_WEIGHT = 0.25
"""Probability that a sample other than the best expert has its full weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMixerOptions:
    """How much worse than the best expert a sample may be.

    Raises:
        ConfigError: If a value is out of range.
    """

    SECTION: ClassVar[str] = "moe.router"

    jitter: Annotated[float, Within(least=0, below=1)] = setting(0.01)
    """Experts with (best - logit) / max(best, |logit|) > 2 * jitter are excluded from the choice;
    best is the largest logit."""

    def __post_init__(self) -> None:
        conform(self)


@register_router("sparse_mixer", options=SparseMixerOptions, random=True)
def route_sparse_mixer(
    logits_TE: Tensor, *, top_k: int, jitter: float = 0.01, training: bool = False
) -> Routing:
    """Choose the experts of each token.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        jitter: See `SparseMixerOptions`.
        training: Sample experts and estimate the gradient; draws from torch's generator.

    Returns:
        Experts in the order of choice. Each weight is a softmax over the experts that were allowed
        at that choice, so the weights of a token do not sum to 1.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    taken_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
    indices, weights = [], []
    for _ in range(top_k):
        index_T1, weight_T1 = _choose(logits_TE, taken_TE, jitter, training)
        indices.append(index_T1)
        weights.append(weight_T1)
        taken_TE = taken_TE.scatter(-1, index_T1, True)
    weights_TK = torch.cat(weights, dim=-1).type_as(logits_TE)
    return Routing.of_indices(torch.cat(indices, dim=-1), weights_TK, num_experts)


def _choose(
    logits_TE: Tensor, taken_TE: Tensor, jitter: float, training: bool
) -> tuple[Tensor, Tensor]:
    """The next expert of each token and its weight, both [T, 1]."""
    with torch.no_grad():
        best_T1, best_index_T1 = logits_TE.masked_fill(taken_TE, -torch.inf).max(-1, keepdim=True)
        gap_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1)
        excluded_TE = taken_TE | (gap_TE > 2 * jitter)
    allowed_TE = logits_TE.masked_fill(excluded_TE, -torch.inf)
    gates_TE = torch.softmax(allowed_TE, dim=-1)
    if not training:
        return best_index_T1, gates_TE.gather(-1, best_index_T1)
    with torch.no_grad():
        # The argmax of logits plus Gumbel noise is a sample of their softmax.
        noise_TE = torch.empty_like(allowed_TE).exponential_().log()
        index_T1 = (allowed_TE - noise_TE).argmax(dim=-1, keepdim=True)
        full_T1 = (index_T1 == best_index_T1) | (torch.rand_like(best_T1) > 1 - _FULL_WEIGHT)
    weight_T1 = gates_TE.gather(-1, index_T1)
    # A third of the value where not full, but always the gradient of the full weight.
    return index_T1, weight_T1 - (weight_T1 * (~full_T1 * (2 / 3))).detach()

"""SparseMixer-v2: experts chosen one after the other, in training at random (arXiv:2409.12136).

Top-k routing gives no gradient to the choice itself. Here a choice is a sample. One that is not the
best expert counts fully now and then and for a third otherwise, which estimates that gradient
(Heun's third order method). Without training the best expert is taken. PhiMoE routes so; the
formulas are those of its published code.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k

_FULLY = 0.25
"""Share of the samples other than the best expert that count fully."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMixerOptions:
    """How far from the best expert a sample may be.

    Raises:
        ConfigError: If a value is out of range.
    """

    SECTION: ClassVar[str] = "moe.router"

    jitter: float = setting(0.01)
    """Experts whose logit is behind the best one by more than twice this part of it (of the larger
    of the best logit and their own size) are not in the choice."""

    def __post_init__(self) -> None:
        conform(self)
        checks.fraction(self, "jitter")


@register_router("sparse_mixer", options=SparseMixerOptions)
def route_sparse_mixer(
    logits_TE: Tensor, *, top_k: int, jitter: float = 0.01, training: bool = False
) -> Routing:
    """Choose the experts of each token.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        jitter: See `SparseMixerOptions`.
        training: Choose at random, with the gradient's estimate; draws from torch's generator.

    Returns:
        Experts in the order of choice. Each weight is a softmax over what was near the best when
        it was chosen, so they do not sum to 1.

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
        behind_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1)
        closed_TE = taken_TE | (behind_TE > 2 * jitter)
    near_TE = logits_TE.masked_fill(closed_TE, -torch.inf)
    gates_TE = torch.softmax(near_TE, dim=-1)
    if not training:
        return best_index_T1, gates_TE.gather(-1, best_index_T1)
    with torch.no_grad():
        # The largest of logits with Gumbel noise is a sample of their softmax.
        noise_TE = torch.empty_like(near_TE).exponential_().log()
        index_T1 = (near_TE - noise_TE).argmax(dim=-1, keepdim=True)
        fully_T1 = (index_T1 == best_index_T1) | (torch.rand_like(best_T1) > 1 - _FULLY)
    weight_T1 = gates_TE.gather(-1, index_T1)
    # The value of a part, with the gradient of the whole.
    return index_T1, weight_T1 - (weight_T1 * (~fully_T1 * (2 / 3))).detach()

"""SparseMixer-v2: experts chosen one after the other, in training at random (arXiv:2409.12136).

Top-k routing gives no gradient to the choice itself. Here a choice is a sample. One that is not the
best expert counts fully now and then and for a third otherwise, which estimates that gradient
(Heun's third order method). Without training the best expert is taken. PhiMoE routes so; the
formulas are those of its published code.
"""

import torch
from torch import Tensor

from moe_megatron.routing.top_k import Routing, check_top_k

_FULLY = 0.25
"""Share of the samples other than the best expert that count fully."""


def route_sparse_mixer(
    logits: Tensor, top_k: int, *, jitter: float = 0.01, training: bool = False
) -> Routing:
    """Choose the experts of each token.

    Args:
        logits: [tokens, experts] gate output.
        top_k: Experts for each token.
        jitter: Experts whose logit is behind the best one by more than twice this part of it
            (of the larger of the best logit and their own size) are not in the choice.
        training: Choose at random, with the gradient's estimate; draws from torch's generator.

    Returns:
        Experts in the order of choice. Each weight is a softmax over what was near the best when
        it was chosen, so they do not sum to 1.

    Raises:
        ConfigError: top_k is not in 1..experts.
    """
    num_experts = logits.shape[-1]
    check_top_k(top_k, num_experts)
    taken = torch.zeros_like(logits, dtype=torch.bool)
    indices, weights = [], []
    for _ in range(top_k):
        index, weight = _choose(logits, taken, jitter, training)
        indices.append(index)
        weights.append(weight)
        taken = taken.scatter(-1, index, True)
    chosen = torch.cat(indices, dim=-1)
    return Routing(
        indices=chosen,
        weights=torch.cat(weights, dim=-1).type_as(logits),
        kept=torch.ones_like(chosen, dtype=torch.bool),
        num_experts=num_experts,
    )


def _choose(logits: Tensor, taken: Tensor, jitter: float, training: bool) -> tuple[Tensor, Tensor]:
    """The next expert of each token and its weight, both [tokens, 1]."""
    with torch.no_grad():
        best, best_index = logits.masked_fill(taken, -torch.inf).max(dim=-1, keepdim=True)
        behind = (best - logits) / logits.abs().clamp(min=best)
        closed = taken | (behind > 2 * jitter)
    near = logits.masked_fill(closed, -torch.inf)
    gates = torch.softmax(near, dim=-1)
    if not training:
        return best_index, gates.gather(-1, best_index)
    with torch.no_grad():
        # The largest of logits with Gumbel noise is a sample of their softmax.
        index = (near - torch.empty_like(near).exponential_().log()).argmax(dim=-1, keepdim=True)
        fully = (index == best_index) | (torch.rand_like(best) > 1 - _FULLY)
    weight = gates.gather(-1, index)
    # The value of a part, with the gradient of the whole.
    return index, weight - (weight * (~fully * (2 / 3))).detach()

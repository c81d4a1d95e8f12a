"""Sinkhorn routing: scores are made even over experts before the choice, in training."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k


def evened(logits_TE: Tensor, iterations: int) -> Tensor:
    """Logits + u_t + v_e, so that every token sums to 1 / T and every expert to 1 / E in exp.

    Sinkhorn's iteration in logarithms: the entropic solution of the assignment problem.
    """
    scores_TE = logits_TE.detach().float()
    for _ in range(iterations):
        scores_TE = scores_TE - torch.logsumexp(scores_TE, dim=0, keepdim=True)
        scores_TE = scores_TE - torch.logsumexp(scores_TE, dim=1, keepdim=True)
    return scores_TE


@register_router("sinkhorn", batch_dependent="training")
def route_sinkhorn(
    logits_TE: Tensor,
    *,
    top_k: int,
    training: bool,
    padding: Tensor | None,
    iterations: Annotated[int, Within(least=1)] = 8,
) -> Routing:
    """Choose the top_k of the evened scores; weights are those of the logits (arXiv:2202.01169).

    With one expert a token, the weight is the sigmoid of its logit, else the softmax over the
    chosen logits. In evaluation the choice is that of the logits themselves, as no token may wait
    for another.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        training: Whether scores are evened over the tokens that are here.
        padding: bool [T], or None.
        iterations: How often rows and columns are made even.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    choice_TE = logits_TE.detach().float()
    if training and padding is None:
        choice_TE = evened(logits_TE, iterations)
    elif training and padding is not None:
        choice_TE = choice_TE.clone()
        choice_TE[~padding] = evened(logits_TE[~padding], iterations)
    indices_TK = choice_TE.topk(top_k, dim=-1).indices
    weights_TK = logits_TE.gather(-1, indices_TK)
    if top_k == 1:
        weights_TK = torch.sigmoid(weights_TK.float())
    else:
        weights_TK = torch.softmax(weights_TK, dim=-1, dtype=torch.float32)
    return Routing.of_indices(indices_TK, weights_TK.type_as(logits_TE), num_experts)

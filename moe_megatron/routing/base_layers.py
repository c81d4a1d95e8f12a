"""BASE: tokens are assigned so that every expert gets equally many, at the best total score."""

import math

import torch
from torch import Tensor

from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k

_ROUNDS = 1000


def balanced_assignment(scores_TE: Tensor, capacity: int, tolerance: float = 1e-2) -> Tensor:
    """One expert for each token, at most `capacity` tokens for each expert, int64 [T].

    Bertsekas' auction: a token without an expert bids for the one that is worth most to it, score
    less price, and goes up to where the second best would do as well. An expert keeps its highest
    bids, and its price is the lowest of them once it is full. The total score is within
    T * tolerance * (range of scores) of the largest one.

    Args:
        scores_TE: What each expert is worth to each token.
        capacity: Places of an expert; capacity * E must be at least T.
        tolerance: Least step of a bid, relative to the range of scores.
    """
    scores_TE = scores_TE.detach().double()
    num_tokens, num_experts = scores_TE.shape
    if num_experts == 1:
        return torch.zeros(num_tokens, dtype=torch.int64, device=scores_TE.device)
    finite_TE = scores_TE.masked_fill(~scores_TE.isfinite(), 0.0)
    least = tolerance * float((finite_TE.max() - finite_TE.min()).clamp(min=1e-6))
    price_E = scores_TE.new_zeros(num_experts)
    expert_T = torch.full((num_tokens,), -1, dtype=torch.int64, device=scores_TE.device)
    bid_T = scores_TE.new_zeros(num_tokens)
    for _ in range(_ROUNDS):
        waiting = (expert_T < 0).nonzero().squeeze(-1)
        if not len(waiting):
            break
        best = (scores_TE[waiting] - price_E).topk(2, dim=-1)
        gain = (best.values[:, 0] - best.values[:, 1]).nan_to_num(posinf=0.0) + least
        expert_T[waiting] = best.indices[:, 0]
        bid_T[waiting] = price_E[best.indices[:, 0]] + gain
        for expert in sorted(set(best.indices[:, 0].tolist())):
            takers = (expert_T == expert).nonzero().squeeze(-1)
            order = bid_T[takers].argsort(descending=True, stable=True)
            expert_T[takers[order[capacity:]]] = -1
            if len(takers) >= capacity:
                price_E[expert] = bid_T[takers[order[capacity - 1]]]
    return _with_places(expert_T, scores_TE, capacity)


def _with_places(expert_T: Tensor, scores_TE: Tensor, capacity: int) -> Tensor:
    """Put tokens that were still bidding where there is room, so that the balance is exact."""
    for token in (expert_T < 0).nonzero().squeeze(-1).tolist():
        taken_E = torch.bincount(expert_T[expert_T >= 0], minlength=scores_TE.shape[1])
        expert_T[token] = scores_TE[token].masked_fill(taken_E >= capacity, -torch.inf).argmax()
    return expert_T


@register_router("base_layers", batch_dependent="training")
def route_base_layers(
    logits_TE: Tensor, *, top_k: int, training: bool, padding: Tensor | None
) -> Routing:
    """In training a balanced assignment, in evaluation the best logits (BASE, arXiv:2103.16716).

    The weight of an expert is the sigmoid of its logit. With more than one expert a token, there
    are as many rounds, each without the experts that a token has.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token; BASE itself has one.
        training: Whether the tokens that are here are assigned together.
        padding: bool [T], or None.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    indices_TK = logits_TE.detach().topk(top_k, dim=-1).indices
    if training:
        valid_T = torch.ones_like(logits_TE[:, 0]).bool() if padding is None else ~padding
        scores_TE = logits_TE.detach()[valid_T].float()
        capacity, rounds = math.ceil(len(scores_TE) / num_experts), []
        for _ in range(top_k):
            rounds.append(balanced_assignment(scores_TE, capacity))
            scores_TE = scores_TE.scatter(1, rounds[-1].unsqueeze(-1), -torch.inf)
        indices_TK[valid_T] = torch.stack(rounds, dim=-1)
    weights_TK = torch.sigmoid(logits_TE.float()).gather(-1, indices_TK)
    return Routing.of_indices(indices_TK, weights_TK.type_as(logits_TE), num_experts)

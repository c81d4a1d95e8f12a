"""Losses that keep a router healthy, unscaled, and the entropy that shows how sure it is.

Their coefficients, and the sum over layers, are the model's business. Callers leave padding out:
every row is a token that counts.
"""

import torch
from torch import Tensor


def load_balancing_loss(scores: Tensor, routing_map: Tensor, top_k: int) -> Tensor:
    """Switch load balancing loss (Fedus et al., arXiv:2101.03961), over all tokens at once.

    `experts * sum_e(f_e * P_e)`: f_e is the share of all assignments that expert e gets, P_e its
    mean probability. Balance gives 1.0, all tokens on the same experts up to experts / top_k. Only
    P_e carries a gradient: counts have none.

    Args:
        scores: [tokens, experts] router distribution, rows summing to 1.
        routing_map: bool [tokens, experts], top_k chosen in each row, before any are dropped.
        top_k: Experts for each token.

    Returns:
        Scalar; 0 without tokens.
    """
    counts = routing_map.sum(dim=0).to(scores.dtype)
    return _switch_loss(scores.sum(dim=0), counts, counts.sum() / top_k, top_k)


def sequence_load_balancing_loss(
    scores: Tensor, routing_map: Tensor, top_k: int, sequence: Tensor, num_sequences: int
) -> Tensor:
    """`load_balancing_loss` of each sequence on its own, averaged (DeepSeek-V2, arXiv:2405.04434).

    Args:
        scores: [tokens, experts] router distribution, rows summing to 1.
        routing_map: bool [tokens, experts], top_k chosen in each row.
        top_k: Experts for each token.
        sequence: int64 [tokens], the sequence of each token.
        num_sequences: Sequences in the batch; those without tokens count as 0.

    Returns:
        Scalar.
    """
    empty = scores.new_zeros(num_sequences, scores.shape[-1])
    prob_sums = empty.index_add(0, sequence, scores)
    counts = empty.index_add(0, sequence, routing_map.to(scores.dtype))
    return _switch_loss(prob_sums, counts, counts.sum(dim=-1) / top_k, top_k).mean()


def _switch_loss(prob_sums: Tensor, counts: Tensor, tokens: Tensor, top_k: int) -> Tensor:
    """The loss from sums over tokens: [..., experts] twice and [...] give [...]."""
    tokens = tokens.clamp_min(1.0)
    num_experts = counts.shape[-1]
    return (prob_sums * counts).sum(dim=-1) * num_experts / (top_k * tokens * tokens)


def z_loss(logits: Tensor) -> Tensor:
    """Router z-loss, mean of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906): keeps logits small.

    Args:
        logits: [tokens, experts] gate output.

    Returns:
        Scalar; 0 without tokens.
    """
    return torch.logsumexp(logits, dim=-1).square().sum() / max(logits.shape[0], 1)


def router_entropy(scores: Tensor) -> Tensor:
    """Mean entropy of the router's distribution: 0 if sure, log(experts) if undecided.

    Args:
        scores: [tokens, experts], rows summing to 1.

    Returns:
        Scalar, in nats; 0 without tokens.
    """
    total: Tensor = torch.special.entr(scores).sum()
    return total / max(scores.shape[0], 1)

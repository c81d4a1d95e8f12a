"""Auxiliary losses of a router, without coefficients, and the entropy of its distribution.

The model applies the coefficients and sums over layers. Callers leave padding out: every row is a
token that counts.
"""

import torch
from torch import Tensor


def load_balancing_loss(scores_TE: Tensor, map_TE: Tensor, top_k: int) -> Tensor:
    """L = E * sum_e f_e * P_e, the load balancing loss of Switch (arXiv:2101.03961, equation 4).

    f_e is the number of tokens that go to expert e, divided by tokens times top_k; P_e is its mean
    probability over all tokens. L is 1.0 in perfect balance, and up to E / top_k if all tokens go
    to the same experts. The gradient flows only through P_e, since counts have none.

    Args:
        scores_TE: Router distribution, rows summing to 1.
        map_TE: bool, the chosen experts, before any are dropped.
        top_k: Experts for each token.

    Returns:
        Scalar; 0 without tokens.
    """
    counts_E = map_TE.sum(dim=0).to(scores_TE.dtype)
    tokens = counts_E.new_tensor(len(scores_TE))
    return _switch_loss(scores_TE.sum(dim=0), counts_E, tokens, top_k)


def sequence_load_balancing_loss(
    scores_TE: Tensor, map_TE: Tensor, top_k: int, sequence_T: Tensor, num_sequences: int
) -> Tensor:
    """L = mean over sequences s of `load_balancing_loss`(s) (DeepSeek-V2, arXiv:2405.04434).

    Args:
        scores_TE: Router distribution, rows summing to 1.
        map_TE: bool, the chosen experts, before any are dropped.
        top_k: Experts for each token.
        sequence_T: int64, the sequence of each token, from 0.
        num_sequences: Sequences in the batch; one without tokens contributes a loss of 0.

    Returns:
        Scalar.
    """
    empty_SE = scores_TE.new_zeros(num_sequences, scores_TE.shape[-1])
    prob_sums_SE = empty_SE.index_add(0, sequence_T, scores_TE)
    counts_SE = empty_SE.index_add(0, sequence_T, map_TE.to(scores_TE.dtype))
    tokens_S = torch.bincount(sequence_T, minlength=num_sequences).to(scores_TE.dtype)
    return _switch_loss(prob_sums_SE, counts_SE, tokens_S, top_k).mean()


def _switch_loss(prob_sums: Tensor, counts: Tensor, tokens: Tensor, top_k: int) -> Tensor:
    """E * sum_e counts_e * prob_sums_e / (top_k * tokens^2): the loss from sums over tokens.

    `prob_sums` and `counts` are [..., E]; `tokens` and the result are [...].
    """
    tokens = tokens.clamp_min(1.0)
    num_experts = counts.shape[-1]
    return (prob_sums * counts).sum(dim=-1) * num_experts / (top_k * tokens * tokens)


def z_loss(logits_TE: Tensor) -> Tensor:
    """L = mean_t logsumexp(logits_t)^2, the router z-loss of ST-MoE (arXiv:2202.08906).

    It keeps the logits small, and with them the rounding errors of low precision.

    Args:
        logits_TE: Output of the gate.

    Returns:
        Scalar; 0 without tokens.
    """
    return torch.logsumexp(logits_TE, dim=-1).square().sum() / max(logits_TE.shape[0], 1)


def router_entropy(scores_TE: Tensor) -> Tensor:
    """H = mean_t -sum_e p_te ln p_te, the entropy of the router: 0 if certain, ln E if uniform.

    Args:
        scores_TE: Router distribution, rows summing to 1.

    Returns:
        Scalar, in nats; 0 without tokens.
    """
    total: Tensor = torch.special.entr(scores_TE).sum()
    return total / max(scores_TE.shape[0], 1)

"""Megatron's routing and token permutation, with kernels where torch is slow.

Each function here has the name and arguments of one in `megatron.core.transformer.moe.moe_utils`.
It computes the same in the usual case and returns None in every other, which is left to the
original.
"""

from types import ModuleType
from typing import Any

import torch

from moe_megatron.mcore.cpu.fast.falling_back import try_first
from moe_megatron.mcore.cpu.fast.kernels import routing, rows


def fix_moe_utils(module: ModuleType) -> None:
    """Make each function of the module try ours first."""
    try_first(
        module,
        z_loss_func,
        topk_routing_with_score_function,
        compute_routing_scores_for_aux_loss,
        permute,
        unpermute,
    )


def z_loss_func(
    logits: torch.Tensor, z_loss_coeff: float, padding_mask: torch.Tensor | None = None
) -> torch.Tensor | None:
    """L_z = z_loss_coeff * mean over tokens of logsumexp(logits)^2; without padding."""
    if padding_mask is not None or not routing.computes(logits):
        return None
    logsumexp: torch.Tensor = routing.Softmax.apply(logits)[1]
    return logsumexp.square().mean() * z_loss_coeff


def topk_routing_with_score_function(
    logits: torch.Tensor,
    topk: int,
    use_pre_softmax: bool = False,
    num_groups: int | None = None,
    group_topk: int | None = None,
    scaling_factor: float | None = None,
    score_function: str = "softmax",
    **others: Any,
) -> Any:
    """Combine weights (softmax over the chosen experts) and routing map, both [tokens, experts]."""
    unusual = (
        use_pre_softmax
        or group_topk
        or scaling_factor
        or any(value is not None and value is not False for value in others.values())
    )
    if unusual or score_function != "softmax" or not routing.computes(logits):
        return None
    return routing.TopKSoftmax.apply(logits, topk)


def compute_routing_scores_for_aux_loss(
    logits: torch.Tensor,
    topk: int,
    score_function: str,
    fused: bool = False,
    padding_mask: torch.Tensor | None = None,
) -> Any:
    """Routing map and softmax scores, both [tokens, experts]; without padding."""
    unusual = score_function != "softmax" or fused or padding_mask is not None
    if unusual or not routing.computes(logits):
        return None
    scores, _ = routing.Softmax.apply(logits)
    _, routing_map = routing.TopKSoftmax.apply(logits.detach(), topk)
    return routing_map, scores


def permute(
    tokens: torch.Tensor,
    routing_map: torch.Tensor,
    probs: torch.Tensor | None = None,
    num_out_tokens: Any = None,
    fused: bool = False,
    drop_and_pad: bool = False,
    tokens_per_expert: torch.Tensor | None = None,
    align_size: int = 0,
) -> Any:
    """Tokens and combine weights in the order of their experts; without padding to a capacity."""
    unusual = fused or drop_and_pad or routing_map.dtype != torch.bool or num_out_tokens is None
    if unusual or not rows.moves(tokens):
        return None
    places = rows.places(routing_map, int(num_out_tokens))
    if places is None:
        return None
    token_of, entry_of = places
    permuted_probs = None if probs is None else probs.reshape(-1).index_select(0, entry_of)
    return rows.Gather.apply(tokens, token_of), permuted_probs, token_of, None, tokens_per_expert


def unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    restore_shape: torch.Size,
    probs: torch.Tensor | None = None,
    **others: Any,
) -> Any:
    """The inverse of `permute`: sums the permuted rows of each token, in the order of tokens."""
    unusual = probs is not None or others.get("fused") or others.get("drop_and_pad")
    if unusual or not rows.moves(permuted_tokens):
        return None
    return rows.Sum.apply(permuted_tokens, sorted_indices, restore_shape[0])

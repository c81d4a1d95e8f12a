"""Megatron's routing and permutation of tokens, with kernels for what torch is slow at.

Each function takes over one of `megatron.core.transformer.moe.moe_utils`, for the usual case: it
computes the same, and leaves everything else to the original.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from moe_megatron.platform.kernels import routing, rows


def fix_moe_utils(module: ModuleType) -> None:
    """Let a module's functions try ours first."""
    for ours in (
        _z_loss_func,
        _topk_routing_with_score_function,
        _compute_routing_scores_for_aux_loss,
        _permute,
        _unpermute,
    ):
        name = ours.__name__.removeprefix("_")
        setattr(module, name, ours(getattr(module, name)))


def _z_loss_func(original: Callable[..., Any]) -> Callable[..., Any]:
    def z_loss_func(
        logits: torch.Tensor, z_loss_coeff: float, padding_mask: torch.Tensor | None = None
    ) -> Any:
        if padding_mask is not None or not routing.computes(logits):
            return original(logits, z_loss_coeff, padding_mask)
        _, logsumexp = routing.Softmax.apply(logits)
        return logsumexp.square().mean() * z_loss_coeff

    return z_loss_func


def _topk_routing_with_score_function(original: Callable[..., Any]) -> Callable[..., Any]:
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
        unusual = (
            use_pre_softmax
            or group_topk
            or scaling_factor
            or any(value is not None and value is not False for value in others.values())
        )
        if unusual or score_function != "softmax" or not routing.computes(logits):
            return original(
                logits,
                topk,
                use_pre_softmax,
                num_groups,
                group_topk,
                scaling_factor,
                score_function,
                **others,
            )
        return routing.TopKSoftmax.apply(logits, topk)

    return topk_routing_with_score_function


def _compute_routing_scores_for_aux_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute_routing_scores_for_aux_loss(
        logits: torch.Tensor,
        topk: int,
        score_function: str,
        fused: bool = False,
        padding_mask: torch.Tensor | None = None,
    ) -> Any:
        unusual = score_function != "softmax" or fused or padding_mask is not None
        if unusual or not routing.computes(logits):
            return original(logits, topk, score_function, fused, padding_mask)
        scores, _ = routing.Softmax.apply(logits)
        _, routing_map = routing.TopKSoftmax.apply(logits.detach(), topk)
        return routing_map, scores

    return compute_routing_scores_for_aux_loss


def _permute(original: Callable[..., Any]) -> Callable[..., Any]:
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
        unusual = fused or drop_and_pad or routing_map.dtype != torch.bool
        places = None
        if not unusual and num_out_tokens is not None and rows.moves(tokens):
            places = rows.places(routing_map, int(num_out_tokens))
        if places is None:
            return original(
                tokens,
                routing_map,
                probs,
                num_out_tokens,
                fused,
                drop_and_pad,
                tokens_per_expert,
                align_size,
            )
        token_of, entry_of = places
        permuted_probs = None if probs is None else probs.reshape(-1).index_select(0, entry_of)
        permuted = rows.Gather.apply(tokens, token_of)
        return permuted, permuted_probs, token_of, None, tokens_per_expert

    return permute


def _unpermute(original: Callable[..., Any]) -> Callable[..., Any]:
    def unpermute(
        permuted_tokens: torch.Tensor,
        sorted_indices: torch.Tensor,
        restore_shape: torch.Size,
        probs: torch.Tensor | None = None,
        **others: Any,
    ) -> Any:
        unusual = probs is not None or others.get("fused") or others.get("drop_and_pad")
        if unusual or not rows.moves(permuted_tokens):
            return original(permuted_tokens, sorted_indices, restore_shape, probs, **others)
        return rows.Sum.apply(permuted_tokens, sorted_indices, restore_shape[0])

    return unpermute

"""Softmax and top-k over the experts of each token, with their gradients.

With few experts, torch's overhead per row exceeds the arithmetic in it. Logits must be fp32
[tokens, experts], contiguous and on the CPU, which `computes` checks; otherwise callers use torch.
"""

from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from moe_megatron.mcore.cpu.fast.kernels.compiled import POINTER, SIZE, call, library

_compiled = library(
    Path(__file__).with_suffix(".c"),
    softmax=[POINTER] * 3 + [SIZE] * 2,
    softmax_backward=[POINTER] * 3 + [SIZE] * 2,
    choose=[POINTER] * 3 + [SIZE] * 3,
)


def computes(logits: torch.Tensor) -> bool:
    """Whether this module can process these logits on this machine."""
    return (
        logits.device.type == "cpu"
        and logits.dtype == torch.float32
        and logits.dim() == 2
        and logits.is_contiguous()
        and logits.shape[1] > 0
        and _compiled() is not None
    )


class TopKSoftmax(torch.autograd.Function):
    """`apply(logits, k) -> weights, chosen`: the softmax over each token's k highest logits.

    weights: fp32 [tokens, experts], zero for experts that were not chosen.
    chosen: bool [tokens, experts]. Of equal logits the first wins.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the experts and weigh them."""
        weights = torch.empty_like(logits)
        chosen = torch.empty_like(logits, dtype=torch.bool)
        if not 0 < k <= logits.shape[1]:
            raise ValueError(f"cannot choose {k} of {logits.shape[1]} experts")
        call(_compiled(), "choose", logits, chosen, weights, *logits.shape, k)
        ctx.mark_non_differentiable(chosen)
        ctx.save_for_backward(weights)
        return weights, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of the logits, [tokens, experts]."""
        return _softmax_backward(ctx.saved_tensors[0], grads[0]), None


class Softmax(torch.autograd.Function):
    """`apply(logits) -> softmax(logits), logsumexp(logits)`: fp32 [tokens, experts], [tokens]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute both."""
        scores, logsumexp = torch.empty_like(logits), logits.new_empty(len(logits))
        call(_compiled(), "softmax", logits, scores, logsumexp, *logits.shape)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores)
        return scores, logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> torch.Tensor | None:
        """The gradient of the logits, [tokens, experts]."""
        (scores,) = ctx.saved_tensors
        d_scores, d_logsumexp = grads
        d_logits = None if d_scores is None else _softmax_backward(scores, d_scores)
        if d_logsumexp is None:
            return d_logits
        more = scores * d_logsumexp.unsqueeze(-1)
        return more if d_logits is None else d_logits.add_(more)


def _softmax_backward(scores: torch.Tensor, d_scores: torch.Tensor) -> torch.Tensor:
    d_logits = torch.empty_like(scores)
    call(_compiled(), "softmax_backward", scores, d_scores.contiguous(), d_logits, *scores.shape)
    return d_logits

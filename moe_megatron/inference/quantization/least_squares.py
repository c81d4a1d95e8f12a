"""Round to nearest with the scale of each group that leaves the smallest squared error.

The ends of a group need not decide: a smaller scale cuts them off and rounds all others finer, and
one that differs little may meet more of the weights. Symmetric scales may be negative, since there
is one more number below zero than above. As llama.cpp chooses the scales of its 4-bit groups, and
as the "mse" observer of llm-compressor, without data.
"""

import torch
from torch import Tensor

from moe_megatron.inference.quantization.methods import (
    Quantized,
    extremes,
    grouped,
    quantized,
    register_method,
    rounded,
    zero_points,
)
from moe_megatron.inference.quantization.precision import Precision

_SHARES = tuple(1.1 - 0.02 * step for step in range(20))
"""Of the scale with which the codes reach from end to end."""


@register_method("least_squares")
def least_squares(matrix: Tensor, precision: Precision) -> Quantized:
    """Round each weight to the nearest multiple of the best scale of its group.

    Args:
        matrix: [rows, columns].
        precision: Bits and groups; the group size divides the columns.
    """
    groups = grouped(matrix, precision)
    low, high = extremes(groups, precision)
    widest = (high - low) / (2**precision.bits - 1)
    best, best_zeros = torch.zeros_like(widest), torch.zeros_like(widest)
    least = torch.full_like(widest, float("inf"))
    for sign in (1.0, -1.0) if precision.symmetric else (1.0,):
        for share in _SHARES:
            scales = (sign * share * widest).to(matrix.dtype).float()
            zeros = zero_points(low, high, scales, precision)
            found = rounded(groups, scales, zeros, precision)
            found.sub_(zeros[..., None]).mul_(scales[..., None])
            error = found.sub_(groups).square_().sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scales, best)
            best_zeros = torch.where(better, zeros, best_zeros)
    return quantized(matrix, best.to(matrix.dtype), best_zeros, precision)

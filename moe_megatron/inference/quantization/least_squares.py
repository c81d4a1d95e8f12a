"""Round to nearest with the scale of each group that leaves the smallest squared error.

The largest weight need not decide: a smaller scale cuts it off and rounds all others finer. Scales
may be negative, since there is one more number below zero than above. As llama.cpp chooses the
scales of its 4-bit groups, and as the "mse" observer of llm-compressor, without data.
"""

import torch
from torch import Tensor

from moe_megatron.inference.quantization.methods import Quantized, register_method, rounded
from moe_megatron.inference.quantization.precision import Precision

_SHARES = tuple(1.0 - 0.05 * step for step in range(7))
"""Of the scale with which nothing is cut off."""


@register_method("least_squares")
def least_squares(matrix: Tensor, precision: Precision) -> Quantized:
    """Round each weight to the nearest multiple of the best scale of its group.

    Args:
        matrix: [rows, columns].
        precision: Bits and groups; the group size divides the columns.
    """
    grouped = matrix.float().view(len(matrix), precision.groups(matrix.shape[1]), -1)
    most = 2 ** (precision.bits - 1)
    largest = grouped.abs().amax(-1)
    best, least = torch.zeros_like(largest), torch.full_like(largest, float("inf"))
    for sign in (1.0, -1.0):
        for share in _SHARES:
            scales = (sign * share / most * largest).to(matrix.dtype).float()
            divisor = torch.where(scales == 0, 1.0, scales)[..., None]
            codes = (grouped / divisor).round_().clamp_(-most, most - 1)
            error = codes.mul_(divisor).sub_(grouped).square_().sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scales, best)
    scales = best.to(matrix.dtype)
    return Quantized(rounded(matrix, scales, precision), scales)

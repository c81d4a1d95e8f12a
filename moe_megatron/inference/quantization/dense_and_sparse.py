"""Dense and sparse: the few largest weights stay as they are, and all others are rounded.

A group has one scale, so that a single large weight makes all others of its group coarse. Kim et
al., "SqueezeLLM: dense-and-sparse quantization", arXiv:2306.07629, keep 0.45 % of the weights of a
matrix apart; their codebooks are not part of this.
"""

from dataclasses import replace

import torch
from torch import Tensor

from moe_megatron.inference.quantization.methods import Outliers, Quantized, register_method
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.quantization.rtn import round_to_nearest

SHARE = 0.0045
"""Of a matrix's weights."""


@register_method("dense_and_sparse")
def dense_and_sparse(matrix: Tensor, precision: Precision) -> Quantized:
    """Keep the largest weights, and round the others to nearest.

    Args:
        matrix: [rows, columns].
        precision: Bits and groups of the others.
    """
    flat = matrix.flatten()
    count = max(round(SHARE * flat.numel()), 1)
    index = flat.float().abs().topk(count).indices.sort().values
    rest = flat.clone()
    rest[index] = 0
    dense = round_to_nearest(rest.view_as(matrix), precision)
    return replace(dense, outliers=Outliers(index.to(torch.int32), flat[index].clone()))

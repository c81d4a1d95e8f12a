"""Round to nearest: the ends of a group decide its scale, and each weight is rounded."""

from torch import Tensor

from moe_megatron.inference.quantization.methods import (
    Quantized,
    extremes,
    grouped,
    quantized,
    register_method,
    zero_points,
)
from moe_megatron.inference.quantization.precision import Precision


@register_method("rtn")
def round_to_nearest(matrix: Tensor, precision: Precision) -> Quantized:
    """Round each weight to the nearest multiple of its group's scale.

    Args:
        matrix: [rows, columns].
        precision: Bits and groups; the group size divides the columns.
    """
    low, high = extremes(grouped(matrix, precision), precision)
    scales = ((high - low) / (2**precision.bits - 1)).to(matrix.dtype)
    return quantized(matrix, scales, zero_points(low, high, scales.float(), precision), precision)

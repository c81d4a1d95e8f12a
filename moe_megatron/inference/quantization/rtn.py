"""Round to nearest: the largest weight of a group decides its scale, and each weight is rounded."""

from torch import Tensor

from moe_megatron.inference.quantization.methods import Quantized, register_method, rounded
from moe_megatron.inference.quantization.precision import Precision


@register_method("rtn")
def round_to_nearest(matrix: Tensor, precision: Precision) -> Quantized:
    """Round each weight to the nearest multiple of its group's scale.

    Args:
        matrix: [rows, columns].
        precision: Bits and groups; the group size divides the columns.
    """
    grouped = matrix.float().view(len(matrix), precision.groups(matrix.shape[1]), -1)
    steps = 2**precision.bits - 1
    scales = (grouped.abs().amax(-1) / (steps / 2)).to(matrix.dtype)
    return Quantized(rounded(matrix, scales, precision), scales)

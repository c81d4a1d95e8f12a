"""product[i] = weights[i] * rows[i]: expert outputs times the combine weights of their tokens.

Done in C where rows are bf16 and weights fp32, which torch cannot multiply without an intermediate
rounding.
"""

from pathlib import Path

import torch

from moe_megatron.mcore.cpu.fast.kernels.compiled import POINTER, SIZE, call, library

_compiled = library(
    Path(__file__).with_suffix(".c"),
    weigh=[POINTER] * 3 + [SIZE] * 2,
    weigh_backward=[POINTER] * 5 + [SIZE] * 2,
)


def weigh(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply rows by weights.

    Args:
        rows: [count, width], contiguous.
        weights: [count], any floating type.

    Returns:
        [count, width], in the dtype of rows.
    """
    if not _in_c(rows, weights):
        return rows * weights.to(rows.dtype).unsqueeze(-1)
    product = torch.empty_like(rows)
    call(_compiled(), "weigh", rows, weights.contiguous(), product, *rows.shape)
    return product


def weigh_backward(
    d_product: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, d_rows: torch.Tensor
) -> torch.Tensor:
    """d_rows[i] = weights[i] * d_product[i]; d_weights[i] = d_product[i] . rows[i].

    Args:
        d_product: [count, width], gradient of the product.
        rows: [count, width], contiguous.
        weights: [count].
        d_rows: [count, width], contiguous; output.

    Returns:
        [count], the gradient of the weights, in their dtype.
    """
    if not _in_c(rows, weights):
        torch.mul(d_product, weights.to(rows.dtype).unsqueeze(-1), out=d_rows)
        return (d_product * rows).sum(dim=-1, dtype=torch.float32).to(weights.dtype)
    d_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    values = (d_product.contiguous(), rows, weights.contiguous(), d_rows, d_weights)
    call(_compiled(), "weigh_backward", *values, *rows.shape)
    return d_weights


def _in_c(rows: torch.Tensor, weights: torch.Tensor) -> bool:
    types = (rows.dtype, weights.dtype)
    return types == (torch.bfloat16, torch.float32) and _compiled() is not None

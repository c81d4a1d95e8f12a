"""`silu(gate) * up`, forward and backward, between the matrix products of an expert on the CPU.

torch needs seven passes over bf16 numbers, each with conversions to fp32 and back; swiglu.c needs
two. In fp32, or without a C compiler, torch computes it.
"""

from pathlib import Path

import torch

from moe_megatron.mcore.cpu.fast.kernels.compiled import POINTER, SIZE, call, library

_compiled = library(
    Path(__file__).with_suffix(".c"),
    swiglu=[POINTER] * 2 + [SIZE] * 2,
    swiglu_backward=[POINTER] * 4 + [SIZE] * 2,
)


def swiglu(both: torch.Tensor, product: torch.Tensor) -> None:
    """Compute `silu(gate) * up`.

    Args:
        both: [tokens, 2 * width], gate and up; contiguous.
        product: [tokens, width]; output.
    """
    if _in_c(both):
        call(_compiled(), "swiglu", both, product, *product.shape)
        return
    gate, up = both.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=product)
    product.mul_(up)


def swiglu_backward(
    both: torch.Tensor, d_product: torch.Tensor, d_both: torch.Tensor, product: torch.Tensor
) -> None:
    """Compute the gradients of gate and up, and `silu(gate) * up` once more.

    Args:
        both: [tokens, 2 * width], gate and up; contiguous.
        d_product: [tokens, width], gradient of the product; may be overwritten.
        d_both: [tokens, 2 * width], gradients of gate and up; output.
        product: [tokens, width]; output.
    """
    if _in_c(both):
        call(_compiled(), "swiglu_backward", both, d_product, d_both, product, *product.shape)
        return
    gate, up = both.chunk(2, dim=-1)
    d_gate, d_up = d_both.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=product)
    torch.mul(d_product, product, out=d_up)
    product.mul_(up)
    torch.ops.aten.silu_backward.grad_input(d_product.mul_(up), gate, grad_input=d_gate)


def _in_c(both: torch.Tensor) -> bool:
    return both.dtype == torch.bfloat16 and _compiled() is not None

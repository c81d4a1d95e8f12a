"""`silu(gate) * up`, forward and backward, between the matrix products of an expert on the CPU.

torch takes seven passes over bf16 numbers for it, and converts them to fp32 and back in each;
swiglu.c takes two. Without a C compiler, and in fp32, torch computes it.
"""

import ctypes
import functools
from pathlib import Path

import torch

from moe_megatron.mcore.compiled import load

_SOURCE = Path(__file__).with_suffix(".c")


def swiglu(both: torch.Tensor, product: torch.Tensor) -> None:
    """Compute `silu(gate) * up`.

    Args:
        both: [tokens, 2 * width], gate and up; contiguous.
        product: [tokens, width]; written.
    """
    kernels = _kernels(both)
    if kernels:
        kernels.swiglu(both.data_ptr(), product.data_ptr(), *product.shape)
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
        d_both: [tokens, 2 * width]; written.
        product: [tokens, width]; written.
    """
    kernels = _kernels(both)
    if kernels:
        pointers = (tensor.data_ptr() for tensor in (both, d_product, d_both, product))
        kernels.swiglu_backward(*pointers, *product.shape)
        return
    gate, up = both.chunk(2, dim=-1)
    d_gate, d_up = d_both.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=product)
    torch.mul(d_product, product, out=d_up)
    product.mul_(up)
    torch.ops.aten.silu_backward.grad_input(d_product.mul_(up), gate, grad_input=d_gate)


def _kernels(both: torch.Tensor) -> ctypes.CDLL | None:
    return _compiled() if both.dtype == torch.bfloat16 else None


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    kernels = load(_SOURCE)
    if kernels:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        kernels.swiglu.argtypes = [pointer] * 2 + [size] * 2
        kernels.swiglu_backward.argtypes = [pointer] * 4 + [size] * 2
        kernels.swiglu.restype = kernels.swiglu_backward.restype = None
    return kernels

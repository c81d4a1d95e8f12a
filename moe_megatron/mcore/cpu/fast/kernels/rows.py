"""Permutes tokens into the order of their experts, and back.

Megatron finds that order by sorting the whole routing map; here a counting sort does it in linear
time. Tokens must be bf16 or fp32 [tokens, hidden], contiguous and on the CPU, which `moves` checks;
otherwise callers use torch.
"""

from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from moe_megatron.mcore.cpu.fast.kernels.compiled import POINTER, SIZE, call, library

_SUMS = {torch.bfloat16: "sum_bf16", torch.float32: "sum_fp32"}

_compiled = library(
    Path(__file__).with_suffix(".c"),
    places=[POINTER] * 3 + [SIZE] * 3,
    gather=[POINTER] * 3 + [SIZE] * 2,
    invert=[POINTER] * 3 + [SIZE] * 2,
    sum_bf16=[POINTER] * 4 + [SIZE] * 2,
    sum_fp32=[POINTER] * 4 + [SIZE] * 2,
)


def moves(tokens: torch.Tensor) -> bool:
    """Whether this module can move these tokens, on this machine."""
    return (
        tokens.device.type == "cpu"
        and tokens.dtype in _SUMS
        and tokens.dim() == 2
        and tokens.is_contiguous()
        and _compiled() is not None
    )


def places(routing_map: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The permuted order of tokens, one expert after the other.

    Args:
        routing_map: bool [tokens, experts], on the CPU.
        rows: Number of its entries that are set.

    Returns:
        For each place in the permuted order, int64 [rows]: the token, and the flat index of its
        entry in the routing map. None if the number of set entries is not `rows`.
    """
    token_of, entry_of = torch.empty(2, rows, dtype=torch.int64)
    tokens, experts = routing_map.shape
    routing_map = routing_map.contiguous()
    found = call(_compiled(), "places", routing_map, token_of, entry_of, tokens, experts, rows)
    return (token_of, entry_of) if found == rows else None


class Gather(torch.autograd.Function):
    """`apply(tokens, token_of)`: [tokens, hidden] to [places, hidden]."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, token_of: torch.Tensor) -> torch.Tensor:
        """out[place] = tokens[token_of[place]]."""
        ctx.save_for_backward(token_of)
        ctx.count = len(tokens)
        return _gathered(tokens, token_of)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sum over the places of each token."""
        return _summed(grads[0].contiguous(), ctx.saved_tensors[0], ctx.count), None


class Sum(torch.autograd.Function):
    """`apply(rows, token_of, tokens)`: [places, hidden] to [tokens, hidden]."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, token_of: torch.Tensor, tokens: int) -> torch.Tensor:
        """Sum over the places of each token, in fp32."""
        ctx.save_for_backward(token_of)
        return _summed(rows, token_of, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """d_rows[place] = grad[token_of[place]]."""
        return _gathered(grads[0].contiguous(), ctx.saved_tensors[0]), None, None


def _gathered(tokens: torch.Tensor, token_of: torch.Tensor) -> torch.Tensor:
    rows = tokens.new_empty(len(token_of), tokens.shape[1])
    call(
        _compiled(),
        "gather",
        tokens,
        token_of,
        rows,
        len(rows),
        tokens.shape[1] * tokens.element_size(),
    )
    return rows


def _summed(rows: torch.Tensor, token_of: torch.Tensor, count: int) -> torch.Tensor:
    first, place_of = token_of.new_empty(count + 2), torch.empty_like(token_of)
    call(_compiled(), "invert", token_of, first, place_of, len(rows), count)
    sums = rows.new_empty(count, rows.shape[1])
    call(_compiled(), _SUMS[rows.dtype], rows, first, place_of, sums, *sums.shape)
    return sums

"""4-bit numbers in the order of torch's product on this processor.

`pack-quantized` has the numbers of a row beside each other, torch's product those of many rows. It
knows how to bring the one into the other, by four bytes for each number and one after the other,
which takes longer than reading the expert from memory. On processors with AVX2 and AVX-512 the
order is blocks of 32 and 64 rows (torch's `Int4mmKernel.cpp`), which a few operations over all of a
matrix make, too. Whether it is so is seen from an example; where it is not, torch does it.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

_ops: Any = torch.ops.aten
_BLOCKS = (64, 32)
"""Rows whose numbers torch has beside each other."""


def reorder(nibbles: Tensor, out: Tensor) -> None:
    """Bring the numbers of a matrix into the order of torch's product.

    Args:
        nibbles: uint8 [O, I / 2], the lower half of a byte first.
        out: uint8 [O, I / 2], contiguous, is written.
    """
    block = _block()
    if block is not None and len(nibbles) % block == 0:
        in_blocks(nibbles, out, block)
    else:
        out.copy_(by_torch(nibbles))


def by_torch(nibbles: Tensor) -> Tensor:
    """The same by torch's own function, which holds everywhere."""
    rows, half = nibbles.shape
    apart = torch.empty(rows, half, 2, dtype=torch.int32)
    apart[..., 0] = nibbles & 15
    apart[..., 1] = nibbles >> 4
    packed: Tensor = _ops._convert_weight_to_int4pack_for_cpu(apart.flatten(1), 1)
    return packed


def in_blocks(nibbles: Tensor, out: Tensor, block: int) -> None:
    """The same where torch has blocks of rows.

    A block is, column by column, its first half of rows in the lower halves of bytes and its second
    in the upper ones.
    """
    columns = nibbles.shape[1]
    halves = nibbles.view(-1, 2, block // 2, columns)
    low, high = halves[:, 0], halves[:, 1]
    blocks = out.view(-1, columns, 2, block // 2)
    blocks[:, :, 0] = ((low & 15) | (high << 4)).transpose(1, 2)
    blocks[:, :, 1] = ((low >> 4) | (high & 240)).transpose(1, 2)


@cache
def _block() -> int | None:
    """The block with which an example comes out as torch has it."""
    chance = torch.Generator().manual_seed(0)
    example = torch.randint(256, (2 * max(_BLOCKS), 48), dtype=torch.uint8, generator=chance)
    wanted, found = by_torch(example), torch.empty_like(example)
    for block in _BLOCKS:
        in_blocks(example, found, block)
        if torch.equal(found, wanted):
            return block
    return None

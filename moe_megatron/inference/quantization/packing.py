"""Whole numbers of 4 or 8 bits in words of 32, as the format `pack-quantized` has them.

The first number of a word is in its lowest bits; numbers are stored with 2^(bits - 1) added, so
that none is negative. Zero points are packed along the rows, so that each column of them is words.
"""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack int8 [rows, columns] into int32 [rows, columns * bits / 32]."""
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        unsigned = unsigned[:, ::2] | (unsigned[:, 1::2] << 4)
    words: Tensor = unsigned.flatten().view(torch.int32).view(len(codes), -1)
    return words


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    unsigned = words.flatten().view(torch.uint8).view(len(words), -1)
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), -1).flatten(1)
    codes: Tensor = (unsigned.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    return codes


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Pack int8 [rows, groups] into int32 [rows * bits / 32, groups]."""
    return pack(zeros.t(), bits).t().contiguous()


def unpack_zeros(words: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_zeros`, transposed: int8 [groups, rows]."""
    return unpack(words.t(), bits)

"""Whole numbers of 4 or 8 bits in words of 32, as the format `pack-quantized` has them.

The first number of a word is in its lowest bits; numbers are stored with 2^(bits - 1) added, so
that none is negative.
"""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack int8 [rows, columns] into int32 [rows, columns * bits / 32]."""
    unsigned = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        unsigned = unsigned[:, ::2] | (unsigned[:, 1::2] << 4)
    words: Tensor = unsigned.contiguous().view(torch.int32)
    return words


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    unsigned = words.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), -1).flatten(1)
    codes: Tensor = (unsigned.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    return codes

"""Numbers of four bits: NF4, the quantiles of a normal distribution (QLoRA, arXiv:2305.14314).

A row of a matrix is cut into blocks of 64, each with the largest magnitude in it. A number is that
times one of sixteen values, and takes half a byte; with the magnitudes it is 4.5 bits. What has
been rounded so stays as it is when it is rounded again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Numbers with one magnitude."""

_AT_ONCE = 2**16
"""Numbers that are made whole at once, so that what is needed meanwhile is small."""

_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""By the code of four bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Nf4:
    """A matrix in four bits."""

    codes: Tensor
    """uint8 [rows, blocks, 32]: two codes in each, the first one in the lower bits."""
    magnitudes: Tensor
    """float32 [rows, blocks]."""
    columns: int
    dtype: torch.dtype
    """Of the matrix."""

    @classmethod
    def of(cls, matrix: Tensor) -> "Nf4":
        """The nearest matrix in four bits.

        Args:
            matrix: [rows, columns].
        """
        rows, columns = matrix.shape
        padded = functional.pad(matrix.detach().float(), (0, -columns % BLOCK))
        blocks = padded.view(rows, -1, BLOCK)
        magnitudes = blocks.abs().amax(-1)
        values = torch.tensor(_VALUES, device=matrix.device)
        between = (values[1:] + values[:-1]) / 2
        scaled = blocks / magnitudes.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        codes = torch.bucketize(scaled, between).to(torch.uint8).view(rows, -1, BLOCK // 2, 2)
        packed = codes[..., 0] | codes[..., 1] << 4
        return cls(packed, magnitudes, columns, matrix.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return len(self.codes), self.columns

    def matrix(self, out: Tensor | None = None) -> Tensor:
        """The matrix [rows, columns], in its type.

        Args:
            out: Where to write it; None: in memory of its own.
        """
        device = self.codes.device
        whole = torch.empty(self.shape, dtype=self.dtype, device=device) if out is None else out
        table = torch.tensor(_VALUES, device=device)
        number = math.ceil(whole.numel() / _AT_ONCE) or 1
        parts = zip(*(it.chunk(number) for it in (whole, self.codes, self.magnitudes)), strict=True)
        for part, packed, magnitudes in parts:
            codes = torch.stack((packed & 15, packed >> 4), dim=-1).view(len(packed), -1, BLOCK)
            values = table[codes.int()] * magnitudes.unsqueeze(-1)
            part.copy_(values.view(len(packed), -1)[:, : self.columns])
        return whole

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        tensors = (self.codes, self.magnitudes)
        return sum(it.numel() * it.element_size() for it in tensors)

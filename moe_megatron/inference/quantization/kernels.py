"""Products with packed matrices on a processor.

Torch has a product for few rows that reads the packed weights, and none for many: there the matrix
is written out in the type of the rows, and multiplied as any other. Which is faster for how many
rows was measured: `benchmarks/results/`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

_ops: Any = torch.ops.aten
FEW_ROWS = 16
"""Up to so many, 8-bit weights are faster packed."""
MANY = 2
"""From so many times the columns on, 4-bit weights are faster written out."""


class Matrix(Protocol):
    """A matrix [columns out, columns in] that rows are multiplied with."""

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """Rows [T, I] -> [T, O]."""

    def dequantized(self) -> Tensor:
        """The matrix [O, I]."""


@dataclass(slots=True)
class Dense:
    """As it is."""

    weight: Tensor
    """[O, I]."""

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """The product."""
        return linear(rows_TI, self.weight)

    def dequantized(self) -> Tensor:
        """The matrix."""
        return self.weight


def dense_pair(
    memory: Tensor, shapes: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype
) -> tuple[Dense, Dense]:
    """An expert's two matrices in memory, uint8, in which one follows the other."""
    numbers = memory.view(dtype)
    (rows, columns), second = shapes
    first = rows * columns
    return Dense(numbers[:first].view(rows, columns)), Dense(numbers[first:].view(second))


@dataclass(slots=True)
class EightBit:
    """8 bits, with a scale for each row."""

    codes: Tensor
    """int8 [O, I]."""
    scales: Tensor
    """[O]."""

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """The product."""
        if self.is_better_written_out(len(rows_TI)):
            return linear(rows_TI, self.dequantized())
        product: Tensor = _ops._weight_int8pack_mm(rows_TI.contiguous(), self.codes, self.scales)
        return product

    def dequantized(self) -> Tensor:
        """The matrix."""
        return self.codes.to(self.scales.dtype).mul_(self.scales[:, None])

    def is_better_written_out(self, rows: int) -> bool:
        """Whether the product with so many rows is faster so."""
        return rows > FEW_ROWS


@dataclass(slots=True)
class FourBit:
    """4 bits in the order that torch's product wants on this processor, with scales of groups."""

    packed: Tensor
    """uint8 [O, I / 2]."""
    scales_and_zeros: Tensor
    """[I / group, O, 2]: a number n stands for n * scale + zero, where n is -8 to 7."""
    group_size: int

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """The product."""
        if self.is_better_written_out(len(rows_TI)):
            return linear(rows_TI, self.dequantized())
        return self._product(rows_TI.contiguous())

    def dequantized(self) -> Tensor:
        """The matrix: its product with the identity, which is exact.

        The order of the packed numbers is torch's own, and differs between processors.
        """
        columns = 2 * self.packed.shape[1]
        identity = torch.eye(columns, dtype=self.scales_and_zeros.dtype)
        return self._product(identity).t()

    def is_better_written_out(self, rows: int) -> bool:
        """Whether the product with so many rows is faster so."""
        return rows > MANY * 2 * self.packed.shape[1]

    def _product(self, rows_TI: Tensor) -> Tensor:
        product: Tensor = _ops._weight_int4pack_mm_for_cpu(
            rows_TI, self.packed, self.group_size, self.scales_and_zeros
        )
        return product


@dataclass(slots=True)
class WithOutliers:
    """A packed matrix, and some weights that are kept as they are."""

    packed: EightBit | FourBit
    """Has 0 where they are."""
    index: Tensor
    """int32 [n], row * columns + column."""
    values: Tensor
    """[n]."""
    columns: int

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """The product."""
        if self.packed.is_better_written_out(len(rows_TI)):
            return linear(rows_TI, self.dequantized())
        product = self.packed(rows_TI)
        taken = rows_TI.index_select(1, self.index % self.columns).float() * self.values.float()
        apart = torch.zeros(product.shape, dtype=torch.float32)
        apart.index_add_(1, self.index // self.columns, taken)
        return product + apart.to(product.dtype)

    def dequantized(self) -> Tensor:
        """The matrix."""
        matrix = self.packed.dequantized().contiguous()
        matrix.view(-1)[self.index.long()] = self.values
        return matrix

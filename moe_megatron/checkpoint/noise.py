"""Random weights that a plan asks for: the routers of upcycled models, noise on copied experts.

A row of a matrix is drawn from a stream of its own, so that the numbers depend on the seed and on
nothing else: not on tiles, workers, types, or on where an interrupted conversion continued.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A matrix of normally distributed numbers; it can stand where a view of a file does."""

    seed: int
    stream: int
    """Which matrix of the model it is; see `stream_of`."""
    std: float
    rows: int
    columns: int
    row: int = 0
    """Row of the whole matrix at which it begins."""
    repeat: int = 1
    """So many rows in turn are the same."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def rows_from(self, row: int, rows: int) -> "Noise":
        """Consecutive rows of it."""
        return replace(self, row=self.row + row, rows=rows)

    def is_packed(self, item: int) -> bool:
        """Never: there are no bytes to copy."""
        return False

    def draw(self) -> "Tensor":
        """The numbers, float32 [rows, columns]."""
        import torch
        from numpy.random import Generator, Philox

        found = torch.empty(self.rows, self.columns)
        for row in range(self.rows):
            counter = [0, (self.row + row) // self.repeat, 0, 0]
            stream = Generator(Philox(key=[self.seed, self.stream], counter=counter))
            found[row] = torch.from_numpy(stream.standard_normal(self.columns, dtype="float32"))
        return found.mul_(self.std)


def stream_of(*names: object) -> int:
    """A number for a matrix that its key, layer and expert name."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest)

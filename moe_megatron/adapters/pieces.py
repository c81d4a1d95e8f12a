"""Where rows of Megatron's matrices are in the tensors of another layout, by the blocks of links.

A tensor is seen as PEFT sees it: [outputs, inputs], or one such matrix for each expert, whichever
of its axes is stored first.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from moe_megatron.checkpoint.plan.blocks import rows_of
from moe_megatron.families.links import Block, Link, Transform
from moe_megatron.families.matrix_places import by_place

_EVERY_SECOND = {Transform.TRANSPOSE_EVEN: 0, Transform.TRANSPOSE_ODD: 1}


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one of Megatron's matrices, and the outputs that they are elsewhere."""

    place: str
    rows: slice
    """Rows of the matrix at that place."""
    tensor: str
    """Name of the tensor that has them."""
    shape: tuple[int, int]
    """Outputs and inputs of that tensor, or of each of its experts."""
    outputs: slice
    """Those of them that are these rows."""
    experts: int | None = None
    """Matrices in the tensor; None: it is one matrix."""
    expert: int = 0
    """Which of them it is."""


class Pieces:
    """All matrices of a model as pieces of the tensors of one layout.

    Args:
        links: The links of the layout; the places and names of their blocks are looked up here.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        self.links: Mapping[str, Link] = by_place(links)
        """By the places of their matrices."""
        found: dict[str, list[Piece]] = defaultdict(list)
        for place, link in self.links.items():
            for piece in _pieces(place, link):
                found[piece.tensor].append(piece)
        self.of_tensor: Mapping[str, list[Piece]] = dict(found)
        """By the names of tensors, in the order of the links."""

    def of(self, place: str) -> Iterator[Piece]:
        """The pieces of one matrix, in the order of its rows."""
        return _pieces(place, self.links[place])


def _pieces(place: str, link: Link) -> Iterator[Piece]:
    for row, rows, block in rows_of(link):
        shape, outputs = _outputs(block, rows, link.expert or 0)
        stacked = len(block.shape) == 3
        yield Piece(
            place=place,
            rows=slice(row, row + rows),
            tensor=block.name,
            shape=shape,
            outputs=outputs,
            experts=block.shape[0] if stacked else None,
            expert=(link.expert or 0) if stacked else 0,
        )


def _outputs(block: Block, rows: int, expert: int) -> tuple[tuple[int, int], slice]:
    """Shape of the matrix that a block is of, [outputs, inputs], and its outputs in there."""
    *_, height, width = block.shape
    if block.transform is Transform.NONE:
        first = block.start - (expert * height if len(block.shape) == 3 else 0)
        return (height, width), slice(first, first + rows)
    if block.transform is Transform.TRANSPOSE:
        return (width, height), slice(0, rows)
    first = _EVERY_SECOND[block.transform]
    return (width, height), slice(first, first + 2 * rows, 2)

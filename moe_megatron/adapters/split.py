"""An adapter seen from another layout: the low-rank matrices of each of its tensors, and back.

The layout is that of Hugging Face or of `MoEModel`; both are links. It does not know files.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from moe_megatron.adapters.low_rank import Adapter, LowRank
from moe_megatron.adapters.low_rank_rows import Part, joined, rows_of
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.config.checks import nearest
from moe_megatron.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class AdaptedTensor:
    """A tensor of the layout with the adapters of its matrices."""

    name: str
    experts: int | None
    """Matrices in the tensor; None: it is one matrix."""
    matrices: Mapping[int, LowRank]
    """By number of the expert, those that are adapted; 0 of a tensor that is one matrix."""


def split(adapter: Adapter, pieces: Pieces) -> Iterator[AdaptedTensor]:
    """The adapted tensors of a layout, in its order.

    Args:
        adapter: An adapter.
        pieces: The layout.

    Raises:
        CheckpointError: The model has no such matrix, or one of another shape.
    """
    for place, low_rank in adapter.items():
        check_fits(place, low_rank, pieces)
    for name, of_tensor in pieces.of_tensor.items():
        parts: dict[int, list[Part]] = defaultdict(list)
        for piece in of_tensor:
            if (whole := adapter.get(piece.place)) is not None:
                parts[piece.expert].append((piece.outputs, rows_of(whole, piece.rows)))
        if parts:
            rows = of_tensor[0].shape[0]
            matrices = {expert: joined(of_one, rows) for expert, of_one in parts.items()}
            yield AdaptedTensor(name, of_tensor[0].experts, matrices)


def gathered(tensors: Iterable[AdaptedTensor], pieces: Pieces) -> dict[str, LowRank]:
    """The inverse of `split`: adapters of Megatron's matrices, from those of a layout's tensors.

    Raises:
        CheckpointError: Some rows of a matrix have magnitudes, and others none.
    """
    parts: dict[str, list[Part]] = defaultdict(list)
    for tensor in tensors:
        for piece in pieces.of_tensor[tensor.name]:
            if (whole := tensor.matrices.get(piece.expert)) is not None:
                parts[piece.place].append((piece.rows, rows_of(whole, piece.outputs)))
    return {
        place: joined(parts[place], link.shape[0])
        for place, link in pieces.links.items()
        if place in parts
    }


def check_fits(place: str, low_rank: LowRank, pieces: Pieces) -> None:
    """Refuse an adapter of a matrix that a model does not have, or that has another shape.

    Raises:
        CheckpointError: It is one.
    """
    link = pieces.links.get(place)
    if link is None:
        raise CheckpointError(
            f"the adapter is for {place}, which this model does not have."
            f"{nearest(place, pieces.links)} It belongs to another model; give that one."
        )
    if low_rank.shape != link.shape:
        raise CheckpointError(
            f"the adapter of {place} is for a matrix {list(low_rank.shape)}, but this model has "
            f"{list(link.shape)} there; it belongs to a model of other sizes."
        )

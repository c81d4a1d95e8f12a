"""Names of an expert's tensors in a packed folder, and which rows of its matrices they are.

The names are those of published folders, with one module for each projection of an expert, since
that is what others expect of packed weights; transformers' fused ones are written so, too.
"""

from collections import defaultdict
from dataclasses import dataclass

from moe_megatron.families import Family, Geometry
from moe_megatron.inference.cache.policies import Key

FIRST, SECOND = "linear_fc1.weight", "linear_fc2.weight"
_DECODER = "decoder.layers."
_WEIGHT = ".weight"
PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
ZERO_POINT = ".weight_zero_point"
"""Ends of tensors as compressed-tensors names them."""
OUTLIERS, OUTLIER_INDEX = ".weight_outliers", ".weight_outlier_index"
"""Ends of ours, of dense and sparse weights."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer of an expert."""

    module: str
    """Its name, without `.weight`."""
    matrix: int
    """0: it is a part of the expert's first matrix; 1: of the second."""
    start: int
    """Its first row there."""
    rows: int
    columns: int


def projections(family: Family, geometry: Geometry) -> dict[Key, tuple[Projection, ...]]:
    """The projections of every expert, in the order of its matrices' rows."""
    found: dict[Key, list[Projection]] = defaultdict(list)
    for link in family.links(geometry):
        if link.expert is None or link.layer is None or not link.key.startswith(_DECODER):
            continue
        matrix = (FIRST, SECOND).index(link.key.partition(".experts.experts.")[2])
        start = 0
        for block in link.blocks:
            module = block.name.removesuffix(_WEIGHT)
            place = Projection(module, matrix, start, block.rows, link.shape[1])
            found[link.layer, link.expert].append(place)
            start += block.rows
    return {
        key: tuple(sorted(them, key=lambda it: (it.matrix, it.start)))
        for key, them in sorted(found.items())
    }


def routers(family: Family, geometry: Geometry) -> tuple[str, ...]:
    """Names of the routers' tensors."""
    return tuple(
        block.name
        for link in family.links(geometry)
        if ".mlp.router." in link.key
        for block in link.blocks
    )

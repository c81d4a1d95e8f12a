"""Links: which rows of Hugging Face tensors make up which matrix of a Megatron checkpoint.

Tables of this package expand to links; the conversion plan turns links into byte ranges. A link
pairs one Megatron matrix, of one layer and one expert, with blocks of rows of Hugging Face tensors.
An export reads it in one direction, an import in the other. This module does not use torch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

LAYER = "{layer}"
_OF_ROUTER = re.compile(r"decoder\.layers\.(?P<layer>\d+\.)?mlp\.router\.(?P<name>.+)")
_PADDED = ("embedding.word_embeddings.", "output_layer.")


class Transform(StrEnum):
    """How the numbers of a block are rearranged, if copying its bytes is not enough."""

    NONE = "none"
    """The bytes are the same on both sides."""
    TRANSPOSE = "transpose"
    """The Hugging Face matrix is [columns, rows] (GPT-OSS `down_proj`)."""
    TRANSPOSE_EVEN = "transpose_even"
    """As TRANSPOSE, of the even columns: the gate of GPT-OSS `gate_up_proj`."""
    TRANSPOSE_ODD = "transpose_odd"
    """As TRANSPOSE, of the odd columns: its up projection."""
    EVEN = "even"
    """The even elements of a vector: the gate's bias."""
    ODD = "odd"
    """The odd elements of a vector."""
    FP4 = "fp4"
    """Rows of 4-bit numbers, two in a byte (MXFP4), the tensor being [..., columns / 32, 16]."""
    FP4_EVEN = "fp4_even"
    """As FP4, of the even rows: the gate of GPT-OSS `gate_up_proj_blocks`."""
    FP4_ODD = "fp4_odd"
    """As FP4, of the odd rows."""


PACKED = frozenset({Transform.FP4, Transform.FP4_EVEN, Transform.FP4_ODD})
"""Transforms of tensors that hold two numbers in each element."""
BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of 4-bit numbers, and of the exponents of each 32 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows of a Hugging Face tensor.

    The tensor is viewed as a matrix: its last axis gives the columns, all axes before it the rows.
    So expert e of a fused [experts, 2 * width, hidden] starts at row e * 2 * width. A vector is a
    single column.
    """

    name: str
    """Name of the tensor."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    start: int = 0
    """First row of the block."""
    rows: int
    """Number of rows; with a transform, rows of the Hugging Face tensor that it reads."""
    transform: Transform = Transform.NONE
    columns: tuple[int, int] | None = None
    """First column and number of columns; None: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A matrix of normally distributed numbers, usable in place of a view of a file.

    Each row is drawn from a stream of its own, so that the numbers depend only on the seed: not on
    tiles, workers, types, or on where an interrupted conversion continued.
    """

    seed: int
    stream: int
    """Index of the matrix among those of a model."""
    std: float
    rows: int
    columns: int
    row: int = 0
    """Row of the whole matrix at which this part begins."""
    repeat: int = 1
    """Number of consecutive rows that are identical."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def rows_from(self, row: int, rows: int) -> "Noise":
        """The part that begins at `row` and has `rows` rows."""
        return replace(self, row=self.row + row, rows=rows)

    def is_packed(self, item: int) -> bool:
        """Always False: there are no bytes to copy."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of a matrix that is a weighted sum."""

    weight: float
    blocks: tuple[Block, ...]
    """As for a link."""


Identity = tuple[str, int | None, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One matrix (or vector) of the Megatron checkpoint and the blocks that make it up."""

    key: str
    """Key of the local layer spec, with `{layer}` in place of the layer number:
    `decoder.layers.{layer}.mlp.experts.experts.linear_fc1.weight`. Experts are not in the key."""
    aliases: tuple[str, ...] = ()
    """Keys of the same bytes in the Transformer Engine spec."""
    layer: int | None = None
    """Layer, from 0; None outside of layers."""
    expert: int | None = None
    """Expert, from 0; None outside of experts."""
    shape: tuple[int, ...]
    """Shape of this layer's and expert's matrix."""
    chunks: int = 1
    """Equal parts along the rows that Megatron saves separately: 2 for gate and up."""
    dtype: str | None = None
    """Type that Megatron requires, such as "F32"; None: that of the source."""
    blocks: tuple[Block, ...]
    """Together they fill this matrix, in the order of its rows."""
    terms: tuple[Term, ...] = ()
    """Terms of a matrix that is a sum (imports only); `blocks` are then those of the first."""
    noise: Noise | None = None
    """Random numbers to add (imports only); without blocks they are the whole matrix."""

    @property
    def identity(self) -> Identity:
        """Key, layer and expert, which no two links of a model share."""
        return self.key, self.layer, self.expert


def matrix_size(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor viewed as a matrix; a vector is one column."""
    return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (prod(shape), 1)


def stacked(key: str) -> str:
    """The stored name of a key if one tensor holds all layers."""
    return key.replace(f"{LAYER}.", "")


def of_layer(key: str, layer: int | None) -> str:
    """The stored name of a key for a single layer."""
    return key.replace(LAYER, str(layer))


def is_of_vocabulary(key: str) -> bool:
    """Whether Megatron may have padded the rows of this tensor with unused words."""
    return key.startswith(_PADDED)


def saved_names(key: str, link: Link) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names under which a link's matrix may be stored, with its index along the leading axes.

    If all layers are of one kind, Megatron stacks them in one tensor [layers, ...], for example
    `decoder.layers.mlp.router.weight`; that name comes first. Otherwise each layer has a name of
    its own (`decoder.layers.3.mlp.router.weight`).
    """
    expert = () if link.expert is None else (link.expert,)
    if LAYER not in key:
        yield key, expert
        return
    assert link.layer is not None, key
    yield stacked(key), (link.layer, *expert)
    yield of_layer(key, link.layer), expert


def router_shapes(saved: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of what a Megatron checkpoint has of one router, by names such as "gate.noise".

    Args:
        saved: Shapes of its tensors by name, whether layers are stacked or not.
    """
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in saved.items():
        if match := _OF_ROUTER.fullmatch(key):
            found[match["name"]] = shape[int(match["layer"] is None) :]
    return found

"""How the tensors of one checkpoint lie in those of the other: the language of tables and plans.

A table of this package expands to links; the plan turns links into byte ranges. A link pairs
one matrix of the Megatron checkpoint, of one layer and one expert, with blocks of rows of Hugging
Face tensors. Read from left to right it exports, from right to left it imports. No torch here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

LAYER = "{layer}"
_PADDED = ("embedding.word_embeddings.", "output_layer.")


class Transform(StrEnum):
    """Work on the numbers of a block that copying its bytes does not do."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows of a Hugging Face tensor.

    The tensor is seen as a matrix: its last axis are the columns, all axes before it the rows. So
    expert e of a fused [experts, 2 * width, hidden] starts at row e * 2 * width. A vector is one
    column wide.
    """

    name: str
    """Name of the tensor."""
    shape: tuple[int, ...]
    """Its whole shape."""
    start: int = 0
    """First row of the block."""
    rows: int
    """Number of rows; with a transform, rows of the Hugging Face tensor that it reads."""
    transform: Transform = Transform.NONE
    columns: tuple[int, int] | None = None
    """First column and number of columns; None: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A matrix of normally distributed numbers; it can stand where a view of a file does.

    A row is drawn from a stream of its own, so that the numbers depend on the seed and on nothing
    else: not on tiles, workers, types, or on where an interrupted conversion continued.
    """

    seed: int
    stream: int
    """Number of the matrix among those of a model."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A term of a matrix that is a weighted sum."""

    weight: float
    blocks: tuple[Block, ...]
    """As those of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One matrix (or vector) of the Megatron checkpoint and the blocks that make it up."""

    key: str
    """Key of the local layer spec, with `{layer}` where the layer number stands:
    `decoder.layers.{layer}.mlp.experts.experts.linear_fc1.weight`. Experts are not in the key."""
    aliases: tuple[str, ...] = ()
    """Keys under which the Transformer Engine spec asks for the same bytes."""
    layer: int | None = None
    """Layer, from 0; None outside of layers."""
    expert: int | None = None
    """Expert, from 0; None outside of experts."""
    shape: tuple[int, ...]
    """Shape of this layer's and expert's matrix."""
    chunks: int = 1
    """Equal parts along the rows that Megatron saves one by one: 2 for gate and up."""
    dtype: str | None = None
    """Type that Megatron insists on, such as "F32"; None: that of the source."""
    blocks: tuple[Block, ...]
    """In order of the rows of this matrix, which they fill."""
    terms: tuple[Term, ...] = ()
    """Terms of a matrix that is a sum (imports only); `blocks` are then those of the first."""
    noise: Noise | None = None
    """Random numbers that are added (imports only); without blocks they are all there is."""


def matrix_size(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor that is seen as a matrix; a vector is one column."""
    return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (prod(shape), 1)


def stacked(key: str) -> str:
    """The name of a key that holds all layers."""
    return key.replace(f"{LAYER}.", "")


def of_layer(key: str, layer: int | None) -> str:
    """The name of a key that holds one layer."""
    return key.replace(LAYER, str(layer))


def is_of_vocabulary(key: str) -> bool:
    """Whether Megatron may have padded the rows of this tensor with unused words."""
    return key.startswith(_PADDED)


def saved_names(key: str, link: Link) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names under which a link's matrix may be stored, with its place along the leading axes.

    Megatron stacks layers that are all alike into one tensor (`decoder.layers.mlp.router.weight`,
    [layers, ...]), which comes first here; otherwise each has a name of its own
    (`decoder.layers.3.mlp.router.weight`).
    """
    expert = () if link.expert is None else (link.expert,)
    if LAYER not in key:
        yield key, expert
        return
    assert link.layer is not None, key
    yield stacked(key), (link.layer, *expert)
    yield of_layer(key, link.layer), expert

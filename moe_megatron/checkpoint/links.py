"""How the tensors of one checkpoint lie in those of the other: the language of tables and plans.

A mapping table (`mappings/`) expands to links; the plan turns links into byte ranges. A link pairs
one matrix of the Megatron checkpoint, of one layer and one expert, with blocks of rows of Hugging
Face tensors. Read from left to right it exports, from right to left it imports. No torch here.
"""

from dataclasses import dataclass
from enum import StrEnum

from moe_megatron.checkpoint.noise import Noise


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
class Share:
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
    shares: tuple[Share, ...] = ()
    """Terms of a matrix that is a sum (imports only); `blocks` are then those of the first."""
    noise: Noise | None = None
    """Random numbers that are added (imports only); without blocks they are all there is."""

"""Compares the weights of both sides bitwise, link by link of the mapping table.

It reads each side once and holds one matrix at a time. If the types differ, the source is cast to
the type of the result, as the conversion did; if they are equal, the bytes must be equal too,
including those of NaN.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.matrices import read_matrix, read_saved_matrix
from moe_megatron.checkpoint.plan import blocks
from moe_megatron.checkpoint.plan.importing import SCALE
from moe_megatron.families.links import Block, Link, matrix_size

_MOST_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """The result of a comparison."""

    matrices: int
    """Number of compared matrices: one per layer, expert and Megatron key, aliases included."""
    nbytes: int
    """Total size of these matrices on the Megatron side."""
    casts: dict[str, int]
    """Number of matrices whose type the conversion changed, by types: "BF16 -> F32"."""
    differences: tuple[str, ...]
    """One sentence for each matrix that differs, for the first 20 of them."""


def compare_weights(
    folder: HfFolder,
    saved: TorchDist,
    links: Sequence[Link],
    *,
    to_megatron: bool,
    scale_block: int = 128,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> WeightsReport:
    """Compare a Hugging Face folder and a Megatron checkpoint.

    Args:
        folder: The Hugging Face side.
        saved: The Megatron side.
        links: All links of the model; both sides must be complete.
        to_megatron: Whether the Megatron side is the result; determines how types are cast.
        scale_block: Side of the square blocks that share a scale factor in 8-bit weights.
        advance: Called with the number of bytes of the Hugging Face side just compared.

    Raises:
        CheckpointError: A file is damaged.
    """
    casts: Counter[str] = Counter()
    differences: list[str] = []
    matrices = nbytes = 0
    for link in links:
        theirs: Tensor | None = None
        for named in _under_each_key(link):
            ours = read_saved_matrix(named, saved)
            if ours is None:
                continue  # an alias that Megatron did not save
            if theirs is None:
                theirs = _hugging_face(link, folder, scale_block)
            casts.update(_casts(link, folder, ours, to_megatron))
            difference = _difference(ours, theirs, to_megatron)
            if difference and len(differences) < _MOST_NAMED:
                differences.append(f"{_described(named)}: {difference}")
            matrices += 1
            nbytes += ours.nbytes
        dtype = folder.tensors[link.blocks[0].name].dtype
        advance(prod(link.shape) * dtypes.item_size(dtype))
    return WeightsReport(
        matrices=matrices, nbytes=nbytes, casts=dict(casts), differences=tuple(differences)
    )


def _under_each_key(link: Link) -> Iterator[Link]:
    for key in (link.key, *link.aliases):
        yield replace(link, key=key, aliases=())


def _casts(link: Link, folder: HfFolder, ours: Tensor, to_megatron: bool) -> set[str]:
    saved = dtypes.from_torch_name(str(ours.dtype).removeprefix("torch."))
    there = {folder.tensors[block.name].dtype for block in link.blocks}
    return {f"{d} -> {saved}" if to_megatron else f"{saved} -> {d}" for d in there if d != saved}


def _difference(ours: Tensor, theirs: Tensor, to_megatron: bool) -> str | None:
    """A sentence about the difference of two matrices; None if they are equal."""
    if to_megatron:
        theirs = theirs.to(ours.dtype)
    else:
        ours = ours.to(theirs.dtype)
    unequal = int((_bits(ours) != _bits(theirs)).sum())
    if not unequal:
        return None
    distance = float((ours.double() - theirs.double()).abs().nan_to_num().max())
    return f"{unequal:,} of {ours.numel():,} numbers differ, by up to {distance:.3g}"


def _bits(matrix: Tensor) -> Tensor:
    """The same bytes as integers, so that a NaN equals itself and -0.0 differs from 0.0."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return matrix.contiguous().view(integers[matrix.element_size()])


def _described(link: Link) -> str:
    names = ", ".join(dict.fromkeys(block.name for block in link.blocks))
    expert = "" if link.expert is None else f" of expert {link.expert}"
    return f"{link.key.format(layer=link.layer)}{expert} and {names}"


def _hugging_face(link: Link, folder: HfFolder, scale_block: int) -> Tensor:
    """The matrix of a link in the type of its tensors; quantised ones dequantised to float32."""
    if all(folder.tensors[b.name].dtype not in dtypes.EIGHT_BIT_FLOATS for b in link.blocks):
        return read_matrix(link, folder)
    columns = matrix_size(link.shape)[1]
    parts = []
    for _, rows, block in blocks.rows_of(link):
        matrix = read_matrix(replace(link, blocks=(block,), shape=(rows, columns)), folder)
        factors = folder.tensors.get(block.name + SCALE)
        if factors is not None:
            matrix = matrix.float() * _factors(factors, block, folder, scale_block)
        parts.append(matrix.float())
    return torch.cat(parts).reshape(link.shape)


def _factors(factors: TensorInfo, block: Block, folder: HfFolder, size: int) -> Tensor:
    """The scale factor of each element of a block."""
    whole = Block(name=factors.name, shape=factors.shape, rows=factors.shape[0])
    table = read_matrix(Link(key="", shape=factors.shape, blocks=(whole,)), folder)
    rows = torch.arange(block.start, block.start + block.rows) // size
    columns = torch.arange(block.shape[-1]) // size
    return table[rows[:, None], columns]

"""Whole tensors by name as the matrices of links, and back: what blocks mean, in memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_megatron.families.links import Link, Transform, matrix_size


def gathered(link: Link, tensors: Mapping[str, Tensor]) -> Tensor:
    """The matrix of a link, from the tensors that its blocks are rows of.

    Args:
        link: Without sums and random numbers.
        tensors: By the names of the blocks.

    Returns:
        Of the shape of the link; a view, where one block is the whole matrix.
    """
    parts = [
        tensors[block.name].reshape(matrix_size(block.shape))[block.start :][: block.rows]
        for block in link.blocks
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(link.shape)


def scatter(matrix: Tensor, link: Link, tensors: dict[str, Tensor]) -> None:
    """Put the rows of a matrix where the blocks of its link have them.

    Args:
        matrix: Of the shape of the link.
        link: Its link.
        tensors: By the names of the blocks; those that are missing are added.
    """
    rows, at = matrix.reshape(matrix_size(link.shape)), 0
    for block in link.blocks:
        assert block.transform is Transform.NONE, "what MoEModel computes is stored plainly"
        if block.name not in tensors:
            tensors[block.name] = matrix.new_empty(block.shape)
        whole = tensors[block.name].view(matrix_size(block.shape))
        whole[block.start : block.start + block.rows] = rows[at : at + block.rows]
        at += block.rows

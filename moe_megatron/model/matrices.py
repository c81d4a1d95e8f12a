"""Converts whole tensors in memory to the matrices of links and back, following their blocks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_megatron.families.links import Link, Transform, matrix_size


def gathered(link: Link, tensors: Mapping[str, Tensor]) -> Tensor:
    """The matrix of a link, gathered from the tensors whose rows its blocks name.

    Args:
        link: A link whose blocks involve neither sums nor random numbers.
        tensors: The tensors, by the names of the blocks.

    Returns:
        A tensor of the link's shape; a view if one block is the whole matrix.
    """
    parts = [
        tensors[block.name].reshape(matrix_size(block.shape))[block.start :][: block.rows]
        for block in link.blocks
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(link.shape)


def scatter(matrix: Tensor, link: Link, tensors: dict[str, Tensor]) -> None:
    """Copy the rows of a matrix into the tensors that the blocks of its link name.

    Args:
        matrix: A tensor of the link's shape.
        link: The link of the matrix.
        tensors: The tensors, by the names of the blocks; missing ones are added.
    """
    rows, start = matrix.reshape(matrix_size(link.shape)), 0
    for block in link.blocks:
        assert block.transform is Transform.NONE, "MoEModel's tensors are stored without transforms"
        if block.name not in tensors:
            tensors[block.name] = matrix.new_empty(block.shape)
        whole = tensors[block.name].view(matrix_size(block.shape))
        count = block.rows * whole.shape[1] // rows.shape[1]
        part = rows[start : start + count].reshape(block.rows, -1)
        whole[block.start : block.start + block.rows] = part
        start += count

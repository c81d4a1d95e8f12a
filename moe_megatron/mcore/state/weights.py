"""Copies weights between a plain `MoEModel` and Megatron's model chunks, in any parallel layout.

It combines two descriptions. Links say which rows of `MoEModel`'s parameters make up each matrix of
a Megatron checkpoint; Megatron's `sharded_state_dict` says which part of which matrix every tensor
of this rank is. So this module knows neither layouts nor names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.utils import unwrap_model
from torch import Tensor

from moe_megatron.config import Architecture
from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.errors import MappingError
from moe_megatron.families.links import Identity, Link, is_of_vocabulary, matrix_size, saved_names
from moe_megatron.mcore.state.sharded import sharded_tensors
from moe_megatron.model.links import links_of
from moe_megatron.model.matrices import gathered, scatter
from moe_megatron.model.storage import WeightMap


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRegion:
    """A region of a matrix that this rank holds, and the tensor that holds it."""

    link: Link
    """The link of the matrix."""
    row: int
    column: int
    local: Tensor
    """[rows, columns], a view of the tensor without the rows that pad the vocabulary."""
    primary: bool
    """Whether this rank is the main replica among those that hold the same part."""

    def of(self, matrix: Tensor) -> Tensor:
        """The part of a whole matrix at this position, as a view."""
        rows, columns = self.local.shape
        whole = matrix.view(matrix_size(self.link.shape))
        return whole[self.row : self.row + rows, self.column : self.column + columns]


def load_weights(
    model: list[Any], weights: Mapping[str, Tensor], architecture: Architecture
) -> None:
    """Copy whole weights into the tensors of this rank.

    Args:
        model: Megatron's model chunks, wrapped or not.
        weights: Every parameter and buffer of the `MoEModel`, by name.
        architecture: Architecture of both models.

    Raises:
        MappingError: A tensor has no counterpart, or its shape differs.
    """
    link: Link | None = None
    with torch.no_grad():
        for region in local_regions(model, architecture):
            if region.link is not link:  # often the link of the region before
                link = region.link
                _check_weights(link, weights)
                matrix = gathered(link, weights)
            region.local.copy_(region.of(matrix))


def collect_weights(model: list[Any], architecture: Architecture) -> WeightMap:
    """Collect the whole weights on every rank; all ranks must call it.

    Args:
        model: Megatron's model chunks, wrapped or not.
        architecture: Architecture of the model.

    Returns:
        float32 tensors on the CPU, by their names in `MoEModel`.

    Raises:
        MappingError: A tensor has no counterpart, or its shape differs.
    """
    device = next(model[0].parameters()).device
    regions: dict[Identity, list[LocalRegion]] = {}
    for region in local_regions(model, architecture):
        if region.primary:
            regions.setdefault(region.link.identity, []).append(region)
    weights: WeightMap = {}
    with torch.no_grad():
        for link in links_of(architecture):  # in the same order on all ranks
            matrix = torch.zeros(link.shape, dtype=torch.float32, device=device)
            for region in regions.get(link.identity, ()):
                region.of(matrix).copy_(region.local)
            dist.all_reduce(matrix)
            scatter(matrix.cpu(), link, weights)
    return weights


def local_regions(model: list[Any], architecture: Architecture) -> Iterator[LocalRegion]:
    """Every tensor of the chunks that checkpoints hold, with its position in a matrix.

    Raises:
        MappingError: `MoEModel` has no such tensor, or its shape differs.
    """
    links = {
        name: link
        for link in links_of(architecture)
        for key in (link.key, *link.aliases)
        for name in saved_names(key, link)
    }
    for chunk in unwrap_model(model):
        for tensor in sharded_tensors(chunk):
            if is_of_adapter(tensor.key):
                continue  # it is beside the weights
            index = tensor.global_offset[: tensor.prepend_axis_num]
            link = links.get((tensor.key, tuple(index)))
            if link is None:
                raise MappingError(f"MoEModel has no counterpart of Megatron's {tensor.key}.")
            yield _local_region(tensor, link)


def _local_region(tensor: ShardedTensor, link: Link) -> LocalRegion:
    leading = tensor.prepend_axis_num
    shape, offset = tensor.global_shape[leading:], tensor.global_offset[leading:]
    if tuple(shape) != link.shape and not is_of_vocabulary(tensor.key):
        raise MappingError(
            f"Megatron's {tensor.key} has the shape {list(shape)} and MoEModel's "
            f"{list(link.shape)}; build both from one configuration."
        )
    row, column = offset[0], offset[1] if len(offset) > 1 else 0
    local = tensor.data.detach().view(matrix_size(tensor.local_shape))
    used = max(0, min(len(local), link.shape[0] - row))
    return LocalRegion(
        link=link,
        row=row,
        column=column,
        local=local[:used],
        primary=is_main_replica(tensor.replica_id),
    )


def _check_weights(link: Link, weights: Mapping[str, Tensor]) -> None:
    for block in link.blocks:
        if block.name not in weights:
            raise MappingError(
                f"the model to load from lacks {block.name}; build both from one configuration."
            )
        if tuple(weights[block.name].shape) != block.shape:
            raise MappingError(
                f"{block.name} has the shape {list(weights[block.name].shape)} and must have "
                f"{list(block.shape)}; build both models from one configuration."
            )

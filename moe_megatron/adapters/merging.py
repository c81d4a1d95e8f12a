"""Merges an adapter into the weights of a `MoEModel`: W + s B A in place of W.

Folders are merged in `merged_folder`, without a model in memory.
"""

import torch

from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.split import split
from moe_megatron.model import MoEModel
from moe_megatron.model.links import links_of
from moe_megatron.model.whole_experts import check_whole


@torch.no_grad()
def merge_into(model: MoEModel, adapter: Adapter) -> None:
    """Change the weights of a model to the adapted ones; nothing changes if one does not fit.

    Args:
        model: The base, with all of its experts.
        adapter: The adapter.

    Raises:
        CheckpointError: The adapter belongs to another model, or experts are on other processes.
    """
    check_whole(model.expert_parallel_group, " before an adapter is merged")
    parameters = dict(model.named_parameters())
    for tensor in list(split(adapter, Pieces(links_of(model.architecture)))):
        parameter = parameters[tensor.name]
        parameter.copy_(tensor.matrices[0].merged(parameter))

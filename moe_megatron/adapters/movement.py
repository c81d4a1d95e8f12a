"""How far an adapter moves each routed expert: |W' - W| / |W|, over all of its matrices."""

from collections import defaultdict

import torch
from torch import Tensor

from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.split import split
from moe_megatron.model import MoEModel
from moe_megatron.model.links import links_of
from moe_megatron.model.whole_experts import check_whole


@torch.no_grad()
def expert_movement(model: MoEModel, adapter: Adapter) -> dict[int, Tensor]:
    """|W' - W| / |W| of every routed expert, the norms being Frobenius norms of all its matrices.

    Args:
        model: The base, with all of its experts.
        adapter: The adapter; an expert without one moves by 0.

    Returns:
        By number of the layer, from 1: float32 [experts], for layers with experts.

    Raises:
        CheckpointError: The adapter belongs to another model, or experts are on other processes.
    """
    check_whole(model.expert_parallel_group, " before experts are compared")
    weights = model.state_dict()
    pieces = Pieces(links_of(model.architecture))
    adapted = {it.name: it.matrices[0] for it in split(adapter, pieces)}
    moved: dict[int, Tensor] = defaultdict(lambda: torch.zeros(_experts(model)))
    whole: dict[int, Tensor] = defaultdict(lambda: torch.zeros(_experts(model)))
    for name, of_tensor in pieces.of_tensor.items():
        link = pieces.links[of_tensor[0].place]
        if link.layer is None or link.expert is None:
            continue
        weight = weights[name].float()
        whole[link.layer + 1][link.expert] += weight.square().sum().cpu()
        if (low_rank := adapted.get(name)) is not None:
            change = low_rank.merged(weight) - weight
            moved[link.layer + 1][link.expert] += change.square().sum().cpu()
    return {layer: (moved[layer] / total).sqrt() for layer, total in sorted(whole.items())}


def _experts(model: MoEModel) -> int:
    return model.architecture.moe.num_experts or 0

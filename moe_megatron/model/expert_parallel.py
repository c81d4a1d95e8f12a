"""Distributes the experts of a model over processes, and collects them again.

Process p of n keeps the experts p * E/n to (p + 1) * E/n - 1 of every layer; everything else stays
on all processes. `experts.pool` describes how tokens then travel.
"""

import copy
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_megatron.config.checks import divisors, join_words
from moe_megatron.errors import TopologyError
from moe_megatron.experts import ExpertPool


def share_experts(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Keep only this process's part of the experts. All processes of the group must call it.

    Raises:
        TopologyError: The number of processes does not divide the number of experts, or the
            processes hold different weights. The model is unchanged.
    """
    layers = _expert_layers(model)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    for experts in layers:
        if experts.num_experts % size:
            raise TopologyError(
                f"the expert parallel group has {size} processes, which must divide num_experts "
                f"({experts.num_experts}); try {join_words(divisors(experts.num_experts))}."
            )
    _check_replicas(model.parameters(), group)
    for experts in layers:
        per_process = experts.num_experts // size
        kept = {str(rank * per_process + index) for index in range(per_process)}
        for name in set(experts) - kept:
            del experts[name]
        experts.process_group = group


def collect_experts(model: nn.Module) -> None:
    """Undo `share_experts`: every process gets all experts. All of the group must call it."""
    for experts in _expert_layers(model):
        if experts.process_group is None:
            continue
        per_process = experts.num_experts // dist.get_world_size(experts.process_group)
        local, template = dict(experts), next(iter(experts.values()))
        experts.clear()
        for number in range(experts.num_experts):
            expert = local.get(str(number))
            expert = copy.deepcopy(template) if expert is None else expert
            for tensor in expert.state_dict().values():
                dist.broadcast(tensor, group=experts.process_group, group_src=number // per_process)
            experts[str(number)] = expert
        experts.process_group = None


def _expert_layers(model: nn.Module) -> list[ExpertPool]:
    return [part for part in model.modules() if isinstance(part, ExpertPool)]


def _check_replicas(parameters: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Check that all processes have the same weights, by comparing the sum of each parameter."""
    mine = torch.stack([parameter.detach().double().sum() for parameter in parameters])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    different = [rank for rank, theirs in enumerate(everyone) if not theirs.equal(everyone[0])]
    if different:
        raise TopologyError(
            f"process {different[0]} of the expert parallel group holds different weights from "
            "process 0; load the same checkpoint on all, or build the model after the same "
            "torch.manual_seed."
        )

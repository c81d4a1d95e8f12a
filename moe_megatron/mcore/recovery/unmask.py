"""Gives masked experts weights with which they can take part again.

    reinitialize    the mean of the layer's living experts, plus a hundredth of its spread as noise
    restore         the weights in the newest checkpoint in which the expert was not masked

A frozen weight that was not zeroed is kept. An adapter of a masked expert begins anew, or is that
of the checkpoint. A balancing bias starts at the mean of the living experts. It does not know the
optimizer.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, mpu
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.utils import unwrap_model

from moe_megatron.config.masked_experts import Experts, experts_of, read_masked
from moe_megatron.errors import RecoveryError
from moe_megatron.mcore.recovery.adapted_experts import (
    adapters_of_experts,
    parameters_of_experts,
)
from moe_megatron.mcore.recovery.expert_parameters import (
    ExpertParameter,
    expert_parameters,
    routers,
)
from moe_megatron.mcore.tuning.adapters.attach import start_magnitudes

_NOISE = 0.01
"""Standard deviation of the noise, in those of the mean's values."""


@torch.no_grad()
def reinitialize(model: list[Any], masked: Experts) -> None:
    """Set masked experts to the mean of the living ones of their layer; every rank must call it.

    Args:
        model: Model chunks.
        masked: The masked experts.
    """
    group = mpu.get_expert_model_parallel_group()
    for (layer, _), own in _by_layer_and_part(model).items():
        dead = set(experts_of(masked, layer))
        if not dead:
            continue
        # Summed in the order of experts, so that it does not depend on how they are distributed.
        size = dist.get_world_size(group) * len(own)
        each = torch.zeros(size, *own[0].tensor.shape, device=own[0].tensor.device)
        for it in own:
            if it.expert not in dead:
                each[it.expert] = it.tensor
        dist.all_reduce(each, group=group)
        mean = each.sum(0) / (size - len(dead))
        for it in own:
            if it.expert in dead and (it.tensor.requires_grad or not it.tensor.any()):
                generator = torch.Generator().manual_seed(1000 * layer + it.expert)
                noise = torch.randn(mean.shape, generator=generator).to(mean.device)
                it.tensor.copy_(mean + _NOISE * mean.std() * noise)
    for home, layer, expert in adapters_of_experts(model):
        if (layer, expert) in masked:
            home.begin_anew()
    start_magnitudes(unwrap_model(model), anew=False)
    _average_biases(model, masked)


@torch.no_grad()
def restore(model: list[Any], masked: Experts, folders: list[Path]) -> None:
    """Set masked experts to their weights of earlier checkpoints; every rank must call it.

    Args:
        model: Model chunks.
        masked: The masked experts.
        folders: Checkpoints to look in, newest first.

    Raises:
        RecoveryError: An expert was masked in all of them.
    """
    sources: defaultdict[Path, set[tuple[int, int]]] = defaultdict(set)
    for layer, expert in masked:
        healthy = (it for it in folders if (layer, expert) not in read_masked(it))
        folder = next(healthy, None)
        if folder is None:
            raise RecoveryError(
                f"expert {expert} of layer {layer} is masked in every checkpoint that is left, so "
                "its weights cannot be restored; resume with recovery.restore_experts: "
                "reinitialize or none."
            )
        sources[folder].add((layer, expert))
    for folder in sorted(sources):
        _load(model, folder, sources[folder])
    _average_biases(model, masked)


def _load(model: list[Any], folder: Path, experts: set[tuple[int, int]]) -> None:
    """Load the experts of a checkpoint, and copy some of them into the model."""
    chosen = {
        id(it.tensor) for it in parameters_of_experts(model) if (it.layer, it.expert) in experts
    }
    kept = [
        (parameter, parameter.detach().clone())
        for chunk in model
        for name, parameter in chunk.named_parameters()
        if ".experts." in name and id(parameter) not in chosen
    ]
    state = {
        f"model{number}": {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if ".experts." in key and "_extra_state" not in key
        }
        for number, chunk in enumerate(unwrap_model(model))
    }
    state = state if len(state) > 1 else {"model": state["model0"]}
    # Tensors are read in place: the weights of the others are put back afterwards.
    for value in nested_values(state):
        assert isinstance(value, ShardedTensor | ShardedTensorFactory)
    loaded = dist_checkpointing.load(state, str(folder))
    for number, chunk in enumerate(unwrap_model(model)):
        found = loaded["model"] if "model" in loaded else loaded[f"model{number}"]
        chunk.load_state_dict(found, strict=False)
    for parameter, weights in kept:
        parameter.copy_(weights)


def _average_biases(model: list[Any], masked: Experts) -> None:
    for layer, router in routers(model).items():
        dead = experts_of(masked, layer)
        if dead and router.expert_bias is not None:
            living = [e for e in range(len(router.expert_bias)) if e not in dead]
            router.expert_bias[dead] = router.expert_bias[living].mean()


def _by_layer_and_part(model: list[Any]) -> dict[tuple[int, str], list[ExpertParameter]]:
    found: defaultdict[tuple[int, str], list[ExpertParameter]] = defaultdict(list)
    for it in expert_parameters(model):
        found[it.layer, it.part].append(it)
    return found

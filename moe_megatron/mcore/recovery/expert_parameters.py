"""The parameters of single experts on this rank, and what the optimizer keeps of them.

It does not know why an expert is looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.moe.moe_layer import MoELayer

from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter

_SEQUENTIAL = re.compile(r"^local_experts\.(\d+)\.(.+)$")
_GROUPED = re.compile(r"^(.+\.(?:weight|bias))(\d+)$")


@dataclass(frozen=True, slots=True)
class ExpertParameter:
    """One parameter of one expert, or this rank's part of it."""

    layer: int
    """Global number of the layer, from 1."""
    expert: int
    """Number of the expert in its layer, from 0."""
    part: str
    """What it is to its expert, such as "linear_fc1.weight"."""
    tensor: torch.nn.Parameter


def expert_parameters(model: list[Any]) -> Iterator[ExpertParameter]:
    """The parameters of the experts of this rank, of Megatron's sequential and grouped experts.

    Args:
        model: Model chunks.
    """
    for layer in _modules(model, MoELayer):
        for name, tensor in layer.experts.named_parameters():
            if match := _SEQUENTIAL.match(name):
                number, part = int(match[1]), match[2]
            elif match := _GROUPED.match(name):
                number, part = int(match[2]), match[1]
            else:
                continue
            expert = layer.local_expert_indices[number]
            yield ExpertParameter(number_of(layer), expert, part, tensor)


def routers(model: list[Any]) -> dict[int, MeasuredRouter]:
    """The routers of this rank, by the global number of their layer."""
    return {number_of(router): router for router in _modules(model, MeasuredRouter)}


@torch.no_grad()
def start_anew(optimizer: Any, parameter: torch.nn.Parameter) -> None:
    """Zero this rank's moments of a parameter, and make its exact copy that of the weights.

    Args:
        optimizer: Megatron's optimizer.
        parameter: A parameter of the model, as it shall be.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if part.is_stub_optimizer:
            continue
        main, weights = getattr(parameter, "main_param", parameter), parameter.detach()
        if isinstance(part, DistributedOptimizer):
            if parameter not in part.model_param_group_index_map:
                continue
            main = part._get_main_param_and_optimizer_states(parameter)["param"]
            own = part._get_model_param_range_map(parameter)["param"]
            weights = weights.view(-1)[own.start : own.end]
        state = part.optimizer.state.get(main)
        if state is None:
            continue
        main.copy_(weights)
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.dim():
                value.zero_()


def _modules(model: list[Any], kind: type) -> Iterator[Any]:
    return (module for chunk in model for module in chunk.modules() if isinstance(module, kind))

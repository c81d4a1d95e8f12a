"""The parameters of single experts on this rank, with those of their adapters.

An adapter that experts share is no part of any of them. It does not know why an expert is looked
at.
"""

from collections.abc import Iterator
from typing import Any

from megatron.core.utils import unwrap_model

from moe_megatron.config.adapter import place_of_tensor
from moe_megatron.mcore.recovery.expert_parameters import ExpertParameter, expert_parameters
from moe_megatron.mcore.tuning.adapters.adapter_tensors import AdapterTensors, adapter_tensors


def parameters_of_experts(model: list[Any]) -> Iterator[ExpertParameter]:
    """The parameters of the experts of this rank, and then those of adapters of single experts.

    Args:
        model: Model chunks.
    """
    yield from expert_parameters(model)
    for home, layer, expert in adapters_of_experts(model):
        for name, parameter in home.named_parameters(recurse=False):
            part = home.layouts[name].name.partition(f".local_experts.{expert}.")[2]
            yield ExpertParameter(layer, expert, part, parameter)


def adapters_of_experts(model: list[Any]) -> Iterator[tuple[AdapterTensors, int, int]]:
    """The adapters of single experts of this rank, each with the numbers of layer and expert."""
    for chunk in unwrap_model(model):
        for home in adapter_tensors([chunk]):
            for layout in home.layouts.values():
                place = place_of_tensor(layout.name, chunk.config.num_layers)
                if place.layer is not None and place.expert is not None:
                    yield home, place.layer, place.expert
                break  # all of one place

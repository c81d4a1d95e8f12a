"""The place of each parameter of this rank in the whole model.

Megatron numbers layers within a pipeline stage and experts within a rank; a place has their numbers
in the whole model, so that words about parameters mean the same under every layout. It does not
know what a place is looked up for.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch

from moe_megatron.config.adapter import place_of_tensor
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.mcore.recovery.expert_parameters import expert_parameters

ADAPTERS = "adapters"
"""The module of a chunk in which the tensors of adapters are."""

_LAYER = re.compile(r"^(?P<stack>decoder|mtp)\.layers\.\d+$")
_LOCAL_EXPERT = re.compile(r"(?P<before>\.local_experts\.|\.(?:weight|bias))\d+(?=\.|$)")
_SHARED_COPY, _EMBEDDING = "output_layer.weight", "embedding.word_embeddings.weight"


def placed_parameters(chunks: list[Any]) -> Iterator[tuple[ParameterPlace, torch.nn.Parameter]]:
    """The parameters of this rank with their places.

    Args:
        chunks: Megatron's model chunks, not wrapped.
    """
    experts = {id(it.tensor): it.expert for it in expert_parameters(chunks)}
    for chunk in chunks:
        layers = _numbers_in_stacks(chunk)
        for name, parameter in chunk.named_parameters():
            if name.startswith(f"{ADAPTERS}."):  # those names are of the whole model
                whole = name.removeprefix(f"{ADAPTERS}.")
                yield place_of_tensor(whole, chunk.config.num_layers), parameter
                continue
            if name == _SHARED_COPY and getattr(parameter, "shared_embedding", False):
                name = _EMBEDDING  # the last stage's copy, which is kept equal
            stack, layer = _layer_of(name, layers)
            if layer is not None:
                name = f"{stack}.layers.{layer - 1}.{name.split('.', 3)[3]}"
            if stack == "mtp" and layer is not None:
                layer += chunk.config.num_layers
            expert = experts.get(id(parameter))
            if expert is not None:
                name = _LOCAL_EXPERT.sub(rf"\g<before>{expert}", name, count=1)
            yield ParameterPlace(name, layer, expert), parameter


def layers_of(chunk: Any) -> dict[int, Any]:
    """The decoder's layers of a model chunk, by their numbers in the whole model, from 1."""
    return {
        number: chunk.get_submodule(name)
        for name, number in _numbers_in_stacks(chunk).items()
        if name.startswith("decoder.")
    }


def _numbers_in_stacks(chunk: Any) -> dict[str, int]:
    return {name: it.layer_number for name, it in chunk.named_modules() if _LAYER.match(name)}


def _layer_of(name: str, layers: dict[str, int]) -> tuple[str, int | None]:
    """The stack of a parameter's layer and its number there, from 1; None outside of layers."""
    stack = name.partition(".")[0]
    return stack, layers.get(".".join(name.split(".")[:3]))

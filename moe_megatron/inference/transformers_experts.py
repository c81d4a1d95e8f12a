"""How a transformers model computes with experts that are not all in memory.

Transformers calls a registered function in place of an experts module's own forward
(`ALL_EXPERTS_FUNCTIONS`); this one asks a source for the matrices of the experts that a layer
needs. Sums are made in the order of the experts, whichever came first, so that results do not
depend on what was in memory.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_megatron.errors import CheckpointError
from moe_megatron.inference.quantization.kernels import Matrix

NAME = "moe_megatron_cached"
"""Name of the function, for `set_experts_implementation`."""
_LAYER = re.compile(r"\.layers\.(\d+)\.")

Then = Callable[[], None]
Source = Callable[[int, Sequence[int], Then | None], Iterator[tuple[int, tuple[Matrix, Matrix]]]]
"""From a layer and its experts to each expert's matrices; a pair is valid until the next one. The
last argument is called when all are there, and some of them are still to be computed with."""


@dataclass(slots=True)
class Place:
    """Where a module of experts is, and whence its matrices come."""

    layer: int
    """From 0."""
    source: Source | None = None
    watch: Callable[[int, Tensor], None] | None = None
    """Is told the layer, and the experts [T, K] that its tokens need."""
    ahead: Callable[[Tensor], None] | None = None
    """Is given the input of the experts [T, H], when the next layer's may be read."""


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of experts, by their names, of a model that has transformers' interface for them.

    Raises:
        CheckpointError: They compute something that cannot be done expert by expert here.
    """
    found = {
        name: it
        for name, it in model.named_modules()
        if hasattr(it, "is_transposed") and hasattr(it, "has_gate")
    }
    for module in found.values():
        it: Any = module
        if it.has_post_expert_norm:
            raise CheckpointError(
                f"{type(model).__name__} has experts with norms of their own, and they are not "
                "computed one by one yet; load it with transformers."
            )
    return found


def without_weights(model: nn.Module) -> list[Place]:
    """Take the parameters of all experts away; returns their places."""
    places = []
    for name, module in experts_of(model).items():
        for parameter, _ in list(module.named_parameters(recurse=False)):
            module.register_parameter(parameter, None)
        module._is_hf_initialized = True  # type: ignore[assignment]  # nothing to initialize
        layer = _LAYER.search(f".{name}.")
        assert layer is not None, name
        place = module.place = Place(int(layer[1]))  # type: ignore[assignment]
        places.append(place)
    return places


def cached_experts(module: Any, hidden: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The sum of each token's experts, weighted.

    Args:
        module: Of experts, with a `place`.
        hidden: [T, H].
        experts_TK: [T, K], numbers of experts; one that is none is left out.
        weights_TK: [T, K].

    Returns:
        [T, H].
    """
    place: Place = module.place
    needed = [it for it in torch.unique(experts_TK).tolist() if it < module.num_experts]
    if place.watch is not None:
        place.watch(place.layer, experts_TK)
    assert place.source is not None
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    then = None if place.ahead is None else partial(place.ahead, hidden)
    for expert, (first, second) in place.source(place.layer, needed, then):
        choice, token = torch.where((experts_TK == expert).t())  # in transformers' order
        inner = first(hidden[token])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        output = second(inner)
        parts[expert] = token, output * weights_TK[token, choice, None]
    total = torch.zeros_like(hidden)
    for expert in needed:
        token, output = parts[expert]
        total.index_add_(0, token, output.to(total.dtype))
    return total


ALL_EXPERTS_FUNCTIONS.register(NAME, cached_experts)

"""Which experts the next layer will probably need: its router, applied to this layer's input.

The input of a layer's experts differs from that of the next layer's by one attention and one sum of
experts in a residual stream, which is often little (FATE, arXiv:2502.12224). It is an estimate, and
nothing that is computed depends on it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from moe_megatron.errors import ConfigError
from moe_megatron.inference.kept_routers import router_of
from moe_megatron.inference.transformers_experts import experts_of

Foresee = Callable[[Tensor], list[int]]
"""From the input of a layer's experts [T, H] to experts of the next layer that has any."""


def next_routers(model: nn.Module) -> dict[int, tuple[int, Foresee]]:
    """For each layer but the last, the next layer and what foresees its experts.

    Args:
        model: A model whose experts have places.

    Raises:
        CheckpointError: It is not known which module a router is.
        ConfigError: A router does not say which experts it chooses.
    """
    found: list[tuple[int, Foresee]] = []
    for name, module in experts_of(model).items():
        experts: Any = module
        router = router_of(model.get_submodule(name.rpartition(".")[0]), experts, type(model))
        found.append((experts.place.layer, _foresee(router, int(experts.num_experts))))
    found.sort(key=lambda it: it[0])
    return {layer: after for (layer, _), after in pairwise(found)}


def _foresee(router: nn.Module, experts: int) -> Foresee:
    """A router as a function; its hooks, which others may have for its logits, are not called."""
    weight: Any = router.weight

    def foresee(hidden: Tensor) -> list[int]:
        chosen = router.forward(hidden)[2]
        return [it for it in torch.unique(chosen).tolist() if it < experts]

    try:
        foresee(weight.new_zeros(1, weight.shape[1]))
    except (TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{type(router).__name__} does not say which experts it chooses, so that nothing can "
            "be read ahead by it; leave prefetch out."
        ) from error
    return foresee

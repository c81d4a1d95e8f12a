"""The digests of a model's routers, put together from all ranks.

A rank digests the routers that it holds. Those of its tensor, expert, context and data parallel
groups hold the same ones, and a pipeline stage has layers of its own. It does not know where the
digests are kept.
"""

from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.mcore import world
from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.telemetry.values.router_digest import router_digest

_BIAS = 2**63
"""A digest is a whole number below 2^64, and int64 holds half of these."""
_NONE = -_BIAS
"""Stands for no digest; one digest of 2^64 is taken for it."""


class RouterDigests:
    """The routers of this rank.

    Args:
        model: The model chunks of this rank; their routers are kept until `release`.
        layers: Numbers of all layers with experts, on every rank the same.
    """

    def __init__(self, model: list[Any], layers: tuple[int, ...]) -> None:
        self._layers = layers
        modules = [module for chunk in model for module in chunk.modules()]
        self._routers = [it for it in modules if isinstance(it, MeasuredRouter)]

    def release(self) -> None:
        """Let go of the routers."""
        self._routers = []

    def gathered(self) -> dict[int, str]:
        """The digest of each layer's router, by its number; every rank must call it.

        Layers whose router has none are left out.
        """
        numbers = dict.fromkeys(self._layers, _NONE)
        for router in self._routers:
            digest = router_digest(router.weight, router.num_experts)
            if digest is not None and number_of(router) in numbers:
                numbers[number_of(router)] = int(digest, 16) - _BIAS
        found = torch.tensor([*numbers.values()], dtype=torch.int64, device=world.device())
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return {
            layer: f"{number + _BIAS:016x}"
            for layer, number in zip(numbers, found.tolist(), strict=True)
            if number != _NONE
        }

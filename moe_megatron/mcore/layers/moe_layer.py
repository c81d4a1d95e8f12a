"""Megatron's MoE layer for routers that give tokens different numbers of experts."""

import copy
from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class VariableMoELayer(MoELayer):
    """`MoELayer` whose dispatcher counts what leaves this rank, in place of tokens times top_k.

    Megatron's all-to-all counts where experts have a capacity; it does not look at the capacity
    itself, which the router applies.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.token_dispatcher, MoEAlltoAllTokenDispatcher):
            config = copy.copy(self.token_dispatcher.config)
            config.moe_expert_capacity_factor = float("inf")
            self.token_dispatcher.config = config

"""Megatron's MoE layer for routers that assign different numbers of experts to tokens."""

import copy
from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class VariableMoELayer(MoELayer):
    """`MoELayer` whose dispatcher counts the tokens it sends instead of assuming tokens * top_k.

    Megatron's all-to-all dispatcher counts when a capacity factor is set. It does not use its
    value (the router applies the capacity), so an infinite one switches counting on.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.token_dispatcher, MoEAlltoAllTokenDispatcher):
            config = copy.copy(self.token_dispatcher.config)
            config.moe_expert_capacity_factor = float("inf")
            self.token_dispatcher.config = config

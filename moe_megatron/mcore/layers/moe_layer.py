"""Megatron's MoE layer for routers that assign different numbers of experts to tokens.

Such a router may also have experts that only copy: what they add is known here, and travels
nowhere.
"""

import copy
from typing import Any

import torch
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

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # Megatron's signature
        """The layer's output; [sequence, batch, hidden] as its input."""
        output, bias = super().forward(hidden_states, *args, **kwargs)
        copied_T, self.router.copied = self.router.copied, None
        if copied_T is not None:
            weights = copied_T.view(*hidden_states.shape[:-1], 1).type_as(hidden_states)
            output = output + weights * hidden_states
        return output, bias

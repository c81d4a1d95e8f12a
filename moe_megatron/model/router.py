"""The gate of an MoE layer in `MoEModel`: its weights, input jitter and capacity.

The choice of experts from the logits is in `moe_megatron.routing`, the experts are in `experts`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import MoEConfig
from moe_megatron.routing import Routing, bind, drop_over_capacity, expert_capacity

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Router(nn.Module):
    """logits = x W^T + b, from which a router of `moe_megatron.routing` chooses experts.

    `weight` is [experts, hidden]; `bias`, [experts], exists only with `add_bias`. The buffer
    `expert_bias`, float32 [experts], exists only with `moe.expert_bias`; training in Megatron
    updates it, this class only reads it.
    """

    bias: nn.Parameter | None
    expert_bias: Tensor | None

    def __init__(
        self, config: MoEConfig, num_experts: int, hidden_size: int, *, add_bias: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.route = bind(config)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if add_bias else None
        self.register_buffer(
            "expert_bias", torch.zeros(num_experts) if config.expert_bias else None
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """Route [tokens, hidden]: all tokens of a batch, without its padding.

        Returns:
            Logits, [tokens, experts], in the router's precision; and the experts of the tokens.
        """
        config = self.config
        jitter = config.input_jitter
        if jitter is not None and self.training:
            hidden = hidden * torch.empty_like(hidden).uniform_(1.0 - jitter, 1.0 + jitter)
        logits_TE = self._logits(hidden)
        routing = self.route(
            logits_TE,
            hidden=hidden,
            padding=None,
            training=self.training,
            expert_bias=self.expert_bias,
        )
        if config.capacity_factor is not None:
            capacity = expert_capacity(
                logits_TE.shape[0], config.top_k, logits_TE.shape[1], config.capacity_factor
            )
            routing = drop_over_capacity(routing, capacity, config.drop_policy)
        return logits_TE, routing

    def _logits(self, hidden: Tensor) -> Tensor:
        name = self.config.router_dtype
        dtype = hidden.dtype if name is None else _DTYPES[name]
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)

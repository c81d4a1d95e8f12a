"""The gate of an MoE layer in `MoEModel`: its weights, input jitter, state and capacity.

The choice of experts from the logits is in `moe_megatron.routing`, the experts are in `experts`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import MoEConfig
from moe_megatron.model.router_state import StateBuffers
from moe_megatron.routing import Routing, bind, drop_over_capacity, expert_capacity

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Router(nn.Module):
    """logits = x W^T + b, from which a router of `moe_megatron.routing` chooses experts.

    `weight` is [experts, hidden]; `bias`, [experts], exists only with `add_bias`. A router with a
    gate of its own may have another `weight` and further parameters, in `gate`. The buffer
    `expert_bias`, float32 [experts], exists only with `moe.expert_bias`, and `state` only if the
    router has one; training in Megatron updates both, this class only reads them.
    """

    bias: nn.Parameter | None
    state: StateBuffers | None
    expert_bias: Tensor | None

    def __init__(
        self, config: MoEConfig, num_experts: int, hidden_size: int, *, add_bias: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.route = bind(config)
        tensors = self.route.gate_tensors(num_experts, hidden_size)
        self._drawn = [name for name, it in tensors.items() if it.first is None]
        gate = {
            name: nn.Parameter(torch.full(it.shape, it.first or 0.0))
            for name, it in tensors.items()
        }
        self.weight = gate.pop("weight")
        self.gate = nn.ParameterDict(gate)
        state = self.route.router.state
        self.state = None if state is None else StateBuffers(state, num_experts)
        self.bias = nn.Parameter(torch.empty(num_experts)) if add_bias else None
        self.register_buffer(
            "expert_bias", torch.zeros(num_experts) if config.expert_bias else None
        )

    def drawn(self) -> Iterator[nn.Parameter]:
        """The parameters that start with random numbers."""
        tensors = self._gate_tensors()
        yield from (tensors[name] for name in self._drawn)
        if self.bias is not None:
            yield self.bias

    def forward(
        self,
        hidden: Tensor,
        token_ids: Tensor | None = None,
        order: Tensor | None = None,
        domain_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:
        """Route [tokens, hidden]: all tokens of a batch, without its padding.

        Args:
            hidden: What enters the gate.
            token_ids: int64 [tokens], for routers that look at them.
            order: int64 [tokens], the tokens in the order in which full experts keep the first.
            domain_ids: int64 [tokens], for routers that look at them; None: they are not known.
            task_ids: As domain_ids.

        Returns:
            Logits, [tokens, experts], in the router's precision; and the experts of the tokens.
        """
        config = self.config
        jitter = config.input_jitter
        if jitter is not None and self.training:
            hidden = hidden * torch.empty_like(hidden).uniform_(1.0 - jitter, 1.0 + jitter)
        logits_TE = self.logits(hidden)
        domain_ids, task_ids = (
            torch.full(hidden.shape[:1], -1, device=hidden.device)
            if ids is None and self.route.uses(name)
            else ids
            for name, ids in (("domain_ids", domain_ids), ("task_ids", task_ids))
        )
        routing = self.route(
            logits_TE,
            hidden=hidden,
            padding=None,
            training=self.training,
            expert_bias=self.expert_bias,
            state=None if self.state is None else self.state.values(),
            token_ids=token_ids,
            domain_ids=domain_ids,
            task_ids=task_ids,
        )
        if config.capacity_factor is not None:
            capacity = expert_capacity(
                logits_TE.shape[0], config.top_k, logits_TE.shape[1], config.capacity_factor
            )
            routing = drop_over_capacity(routing, capacity, config.drop_policy, order_T=order)
        return logits_TE, routing

    def logits(self, hidden: Tensor) -> Tensor:
        """What the gate makes of vectors [tokens, hidden]: [tokens, experts]."""
        name = self.config.router_dtype
        dtype = hidden.dtype if name is None else _DTYPES[name]
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.route.router.gate is None:
            return functional.linear(hidden.to(dtype), self.weight.to(dtype), bias)
        logits_TE = self.route.gate_logits(
            hidden.to(dtype),
            training=self.training,
            **{name: tensor.to(dtype) for name, tensor in self._gate_tensors().items()},
        )
        return logits_TE if bias is None else logits_TE + bias

    def _gate_tensors(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight, **self.gate}

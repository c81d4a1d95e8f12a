"""Gated linear units as experts (Shazeer, arXiv:2002.05202)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.experts.expert import Expert
from moe_megatron.experts.kinds import register_expert

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
    "linear": lambda x: x,
}
"""In the paper's names: GLU, SwiGLU, GEGLU, ReGLU and bilinear."""


@register_expert("glu")
class GluExpert(Expert):
    """y = W_down (g(W_gate x) * W_up x).

    Args:
        hidden_size: Features of a row.
        intermediate_size: Inner features.
        gate: The function g.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        gate: Literal["sigmoid", "silu", "gelu", "relu", "linear"] = "silu",
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)
        self._function = _GATES[gate]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the expert to rows, [n, hidden] to [n, hidden]."""
        output: Tensor = self.down(self._function(self.gate(x)) * self.up(x))
        return output

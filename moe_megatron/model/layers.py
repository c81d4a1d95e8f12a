"""The small layers that attention, experts and dense layers share: norms and feed-forward.

They know widths and activations, not where in the model they stand.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import ModelConfig

# Megatron's gelu is the exact one unless its fused kernel for layers with a bias is on.
_PLAIN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "squared_relu": lambda x: functional.relu(x).square(),
}


def build_norm(config: ModelConfig, width: int) -> nn.Module:
    """The configured norm over the last axis of [..., width]."""
    if config.norm == "RMSNorm":
        return nn.RMSNorm(width, eps=config.norm_epsilon)
    return nn.LayerNorm(width, eps=config.norm_epsilon)


class FeedForward(nn.Module):
    """A dense MLP, and equally one expert: [..., hidden] to [..., hidden].

    With swiglu (Shazeer, arXiv:2002.05202) it has three matrices,
    `down_proj(silu(gate_proj(x)) * up_proj(x))`; with other activations there is no gate.
    """

    gate_proj: nn.Linear | None

    def __init__(self, config: ModelConfig, inner_size: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.add_bias
        gated = config.is_gated
        self.gate_proj = nn.Linear(hidden, inner_size, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden, inner_size, bias=bias)
        self.down_proj = nn.Linear(inner_size, hidden, bias=bias)
        self._activation = _PLAIN_ACTIVATIONS.get(config.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer to [..., hidden]."""
        inner: Tensor = self.up_proj(hidden)
        if self.gate_proj is not None:
            inner = functional.silu(self.gate_proj(hidden)) * inner
        elif self._activation is not None:
            inner = self._activation(inner)
        output: Tensor = self.down_proj(inner)
        return output

    def hidden_side(self) -> Tensor:
        """All matrices with their hidden side last: [2 or 3 x inner, hidden], gate, up, down.

        Each row is what one inner feature reads from (gate, up) or writes to (down) the residual
        stream.
        """
        reads = [] if self.gate_proj is None else [self.gate_proj.weight]
        return torch.cat([*reads, self.up_proj.weight, self.down_proj.weight.T]).detach()

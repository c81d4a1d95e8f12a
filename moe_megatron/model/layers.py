"""The small layers shared by attention, experts and dense layers: norms and feed-forward.

They know widths and activations, but not their place in the model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import ModelConfig

# Megatron's gelu is exact unless its fused kernel for layers with a bias is on.
_PLAIN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "squared_relu": lambda x: functional.relu(x).square(),
}


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": functional.silu,
    "quick_geglu": lambda x: x * torch.sigmoid(1.702 * x),
}


def build_norm(config: ModelConfig, width: int, epsilon: float | None = None) -> nn.Module:
    """The configured norm over the last axis of [..., width].

    Args:
        config: Which norm, and what it adds to the variance.
        width: Features of a row.
        epsilon: What it adds instead; None: as configured.
    """
    kind = nn.RMSNorm if config.norm == "RMSNorm" else nn.LayerNorm
    return kind(width, eps=config.norm_epsilon if epsilon is None else epsilon)


class FeedForward(nn.Module):
    """y = down_proj(silu(gate_proj(x)) * up_proj(x)), [..., hidden] to [..., hidden].

    That is swiglu (Shazeer, arXiv:2002.05202). quick_geglu has x sigmoid(1.702 x) in place of silu;
    with `activation_clamp` c and `glu_offset` b (GPT-OSS, arXiv:2508.10925) it is
    y = down_proj(f(min(gate, c)) * (clip(up, -c, c) + b)). Other activations have no gate:
    y = down_proj(activation(up_proj(x))). It serves as a dense MLP and as one expert.
    """

    gate_proj: nn.Linear | None

    def __init__(self, config: ModelConfig, inner_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self._dropout = dropout
        hidden, bias = config.hidden_size, config.add_bias
        gated = config.is_gated
        self.gate_proj = nn.Linear(hidden, inner_size, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden, inner_size, bias=bias)
        self.down_proj = nn.Linear(inner_size, hidden, bias=bias)
        self._activation = (_GATES if gated else _PLAIN_ACTIVATIONS)[config.activation]
        self._clamp, self._offset = config.activation_clamp, config.glu_offset

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer to [..., hidden]."""
        inner: Tensor = self.up_proj(hidden)
        if self.gate_proj is None:
            inner = self._activation(inner)
        else:
            inner = self._gated(self.gate_proj(hidden), inner)
        inner = functional.dropout(inner, self._dropout, self.training)
        output: Tensor = self.down_proj(inner)
        return output

    def _gated(self, gate: Tensor, inner: Tensor) -> Tensor:
        if self._clamp is not None:
            gate, inner = gate.clamp(max=self._clamp), inner.clamp(-self._clamp, self._clamp)
        if self._offset:
            inner = inner + self._offset
        return self._activation(gate) * inner

    def hidden_side(self) -> Tensor:
        """Gate, up and transposed down matrix stacked: [3 * inner, hidden]; 2 * inner without gate.

        Each row is the vector that one inner feature reads from (gate, up) or writes to (down) the
        residual stream.
        """
        gate = [] if self.gate_proj is None else [self.gate_proj.weight]
        return torch.cat([*gate, self.up_proj.weight, self.down_proj.weight.T]).detach()

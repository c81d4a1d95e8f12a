"""The MLP of GPT-2 as an expert."""

from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.experts.expert import Expert
from moe_megatron.experts.kinds import register_expert


@register_expert("gelu")
class GeluExpert(Expert):
    """y = W_2 gelu(W_1 x + b_1) + b_2.

    Args:
        hidden_size: Features of a row.
        intermediate_size: Inner features.
        bias: Whether there are b_1 and b_2.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the expert to rows, [n, hidden] to [n, hidden]."""
        output: Tensor = self.down(functional.gelu(self.up(x)))
        return output

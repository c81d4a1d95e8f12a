"""Experts with matrices of low rank: many experts for the parameters of a few."""

from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import Within
from moe_megatron.experts.expert import Expert
from moe_megatron.experts.kinds import register_expert


@register_expert("low_rank")
class LowRankExpert(Expert):
    """y = B_2 A_2 silu(B_1 A_1 x), where each A maps to `rank` features.

    It has 2 * rank * (hidden + intermediate) parameters, a two-layer MLP 2 * hidden * intermediate.

    Args:
        hidden_size: Features of a row.
        intermediate_size: Inner features.
        rank: Rank of both matrices.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        rank: Annotated[int, Within(least=1)] = 8,
    ) -> None:
        super().__init__()
        self.up = _product(hidden_size, rank, intermediate_size)
        self.down = _product(intermediate_size, rank, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the expert to rows, [n, hidden] to [n, hidden]."""
        output: Tensor = self.down(functional.silu(self.up(x)))
        return output


def _product(inputs: int, rank: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))

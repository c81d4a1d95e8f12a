"""What an adapter does to a linear layer: y = W x + b + s B (A x), and magnitudes (DoRA)."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from moe_megatron.adapters.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """What one adapter does to one linear layer."""

    low_rank: LowRank
    ratio: Tensor | None
    """m / |W + s B A| of each output; None without magnitudes."""

    @classmethod
    def of(cls, layer: nn.Linear, low_rank: LowRank) -> Self:
        """The update of a layer whose weights stay as they are."""
        if low_rank.magnitude is None:
            return cls(low_rank, None)
        delta = low_rank.delta()
        norm = (layer.weight.to(delta) + delta).norm(dim=1)
        return cls(low_rank, low_rank.magnitude.to(norm) / norm)

    def apply(self, layer: nn.Linear, inputs: Tensor, output: Tensor) -> Tensor:
        """The output of the adapted layer, from its inputs and the output without adapter."""
        update = change(self.low_rank, inputs)
        if self.ratio is None:
            return output + update
        bias = 0 if layer.bias is None else layer.bias
        return self.ratio.to(inputs) * (output - bias + update) + bias


def change(low_rank: LowRank, inputs: Tensor) -> Tensor:
    """S B (A x) of inputs [..., in]: [..., out]."""
    a, b = (it.to(inputs) for it in (low_rank.a, low_rank.b))
    return low_rank.scale * nn.functional.linear(nn.functional.linear(inputs, a), b)

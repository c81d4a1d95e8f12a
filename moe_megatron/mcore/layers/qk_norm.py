"""Norms of queries and keys over all heads at once, as in OLMoE (arXiv:2409.02060, 4.2.5).

Megatron normalizes each head separately. Here the mean square is taken over the heads of all tensor
parallel ranks. Each of them has the whole weight and uses the part of its own heads: Megatron sums
the gradients of all parameters that are called `q_layernorm` or `k_layernorm` over these ranks, and
the sum of parts that are zero elsewhere is the gradient.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from moe_megatron.errors import ConfigError

Of = Literal["queries", "keys"]


class AllHeadsNorm(torch.nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), the mean over all heads (RMSNorm, arXiv:1910.07467).

    Args:
        of: What is normalized, which determines the number of heads.
        config: Megatron's configuration.
        hidden_size: Width of a head.
        eps: Added to the mean square.

    Raises:
        ConfigError: The model's norm is not RMSNorm.
    """

    def __init__(
        self, of: Of, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if config.normalization != "RMSNorm":
            raise ConfigError(
                f"model.qk_norm_scope 'all_heads' needs model.norm 'RMSNorm', and model.norm is "
                f"'{config.normalization}'; change one of them."
            )
        heads = config.num_attention_heads if of == "queries" else config.num_query_groups
        self._width, self._eps = heads * hidden_size, eps
        self._ranks = parallel_state.get_tensor_model_parallel_world_size()
        self.weight = torch.nn.Parameter(torch.ones(self._width, dtype=config.params_dtype))

    def forward(self, heads: Tensor) -> Tensor:
        """Normalize [sequence, batch, heads of this rank, head width]."""
        flat = heads.flatten(-2)
        square = flat.float().square().sum(-1, keepdim=True)
        if self._ranks > 1:
            square = _SumOverRanks.apply(square)
        scale = torch.rsqrt(square / self._width + self._eps)
        normed = (flat.float() * scale).to(heads.dtype)
        return (self._weight_of_rank() * normed).view_as(heads)

    def _weight_of_rank(self) -> Tensor:
        width = self._width // self._ranks
        first = parallel_state.get_tensor_model_parallel_rank() * width
        return self.weight[first : first + width]


class _SumOverRanks(torch.autograd.Function):
    """Sum over tensor parallel ranks, and of gradients too: each rank uses the sum differently."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(part: Tensor) -> Tensor:
    whole = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=parallel_state.get_tensor_model_parallel_group())
    return whole


NORMS = {
    "q_layernorm": partial(AllHeadsNorm, "queries"),
    "k_layernorm": partial(AllHeadsNorm, "keys"),
}
"""The norms by their names in the submodules of Megatron's attention."""

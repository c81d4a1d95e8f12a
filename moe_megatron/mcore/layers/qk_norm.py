"""Norms of queries and keys over all heads at once, as in OLMoE (arXiv:2409.02060, 4.2.5).

Megatron normalizes each head separately. Here the mean square is taken over the heads of all tensor
parallel ranks, each of which holds its part of the weight.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
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
        self.weight = torch.nn.Parameter(
            torch.ones(self._width // self._ranks, dtype=config.params_dtype)
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, heads: Tensor) -> Tensor:
        """Normalize [sequence, batch, heads of this rank, head width]."""
        flat = heads.flatten(-2)
        square = flat.float().square().sum(-1, keepdim=True)
        if self._ranks > 1:
            square = _SumOverRanks.apply(square)
        scale = torch.rsqrt(square / self._width + self._eps)
        return (self.weight * (flat.float() * scale).to(heads.dtype)).view_as(heads)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The weight as Megatron's checkpoints describe it: split along its only axis."""
        state = self.state_dict(prefix="", keep_vars=True)
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            state, prefix, {"weight": 0}, sharded_offsets
        )
        return sharded


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

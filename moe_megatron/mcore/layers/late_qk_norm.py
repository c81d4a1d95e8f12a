"""Norms of queries and keys after their rotation, as in HunYuan; Megatron normalizes before it.

The two differ as soon as the norms' weights do: a rotation mixes features with different weights.
"""

from functools import partial
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor, nn


class LateNormAttention(SelfAttention):
    """`SelfAttention` that normalizes queries and keys just before the attention itself."""

    q_layernorm: Any
    k_layernorm: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        norms = partial(_normalized, self.q_layernorm, self.k_layernorm)
        self.core_attention.register_forward_pre_hook(norms)

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """As Megatron's, without the norms."""
        norms = self.q_layernorm, self.k_layernorm
        self.q_layernorm = self.k_layernorm = None
        try:
            return super().get_query_key_value_tensors(*args, **kwargs)
        finally:
            self.q_layernorm, self.k_layernorm = norms


def _normalized(
    query_norm: nn.Module, key_norm: nn.Module, core_attention: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    query: Tensor = query_norm(inputs[0])
    key: Tensor = key_norm(inputs[1])
    return query, key, *inputs[2:]

"""Causal self-attention: grouped-query, with rotary positions, padding and a key/value cache.

It knows one layer; what attends to what is decided once for all layers by `visible_keys`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import ModelConfig
from moe_megatron.model.layers import build_norm


def visible_keys(valid: Tensor | None, queries: Tensor, num_keys: int) -> Tensor | None:
    """Which keys each query may see: itself and valid ones before it.

    A query always sees itself, so that padding, which may see nothing else, has a softmax over
    something.

    Args:
        valid: bool [batch, keys], False for padding; None if there is none.
        queries: int64 [queries], their places among the keys.
        num_keys: Places from the first cached one to the last query.

    Returns:
        bool [batch or 1, 1, queries, keys]; None for plain causal attention over one square block.
    """
    if valid is None and len(queries) == num_keys:
        return None
    keys = torch.arange(num_keys, device=queries.device)
    causal, itself = keys <= queries.unsqueeze(1), keys == queries.unsqueeze(1)
    if valid is None:
        return causal[None, None]
    return (causal & valid[:, None, None, :]) | itself


def token_positions(valid: Tensor | None, queries: Tensor) -> Tensor:
    """Positions of the queries, int64 [batch or 1, queries], from 0 at the first valid token.

    Args:
        valid: bool [batch, keys], False for padding; None if there is none.
        queries: int64 [queries], their places among the keys.
    """
    if valid is None:
        return queries.unsqueeze(0)
    return (valid.long().cumsum(dim=1) - 1).clamp_min(0)[:, queries]


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al., arXiv:2104.09864), without interleaving.

    Feature i turns with feature i + head_dim / 2, as in Megatron and in Hugging Face models.

    Args:
        positions: int64 [batch or 1, seq].
        head_dim: Width of one head, or of the part that turns; even.
        base: Base of the frequencies.

    Returns:
        float32 [batch or 1, 1, seq, head_dim] twice.
    """
    # Computed anew each time: stored as a buffer, model.to(bfloat16) would round the frequencies.
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    half = positions[:, None, :, None].float() * (1.0 / base**exponents)
    angles = torch.cat((half, half), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [batch, heads, seq, head_dim] by the angles of `rotary_angles`.

    Angles may be fewer than features; those behind them stay as they are.
    """
    turning = cos.shape[-1]
    if turning < heads.shape[-1]:
        return torch.cat((rotate(heads[..., :turning], cos, sin), heads[..., turning:]), dim=-1)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cos.to(heads.dtype) + turned * sin.to(heads.dtype)


class KeyValueCache:
    """Keys and values of the positions seen so far, for each layer by its global number."""

    def __init__(self) -> None:
        self.length = 0
        """Positions in the cache; advanced by the model after all layers."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, groups, seq, head_dim] and return all, the cached ones first."""
        if layer in self._layers:
            old_keys, old_values = self._layers[layer]
            keys = torch.cat((old_keys, keys), dim=2)
            values = torch.cat((old_values, values), dim=2)
        self._layers[layer] = (keys, values)
        return keys, values


class Attention(nn.Module):
    """Causal self-attention; several query heads share a key/value head (arXiv:2305.13245)."""

    q_norm: nn.Module | None
    k_norm: nn.Module | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.add_bias
        self.layer = layer
        self.head_dim = config.attention_head_dim
        self.dropout = config.attention_dropout
        queries = config.num_attention_heads * self.head_dim
        groups = config.key_value_heads * self.head_dim
        qkv_bias = bias or config.qkv_bias
        self.q_proj = nn.Linear(hidden, queries, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden, groups, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden, groups, bias=qkv_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=bias or config.attention_output_bias)
        self.scale = config.softmax_scale
        self.norm_all_heads = config.qk_norm_scope == "all_heads"
        widths = (queries, groups) if self.norm_all_heads else (self.head_dim, self.head_dim)
        self.q_norm, self.k_norm = (
            build_norm(config, width) if config.qk_norm else None for width in widths
        )

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            hidden: [batch, seq, hidden].
            angles: Of `rotary_angles`; None without rotary positions.
            mask: Of `visible_keys`.
            cache: Earlier positions, to which these are appended.

        Returns:
            [batch, seq, hidden].
        """
        queries = self._heads(self.q_proj(hidden), self.q_norm, angles)
        keys = self._heads(self.k_proj(hidden), self.k_norm, angles)
        values = self._heads(self.v_proj(hidden), None, None)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=True,
        )
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def attention_weights(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """How much each query attends to each key, which `forward` never has in memory.

        Args:
            hidden: [batch, seq, hidden], as for `forward`.
            angles: Of `rotary_angles`.
            mask: Of `visible_keys`.

        Returns:
            [batch, heads, queries, keys], rows summing to 1.
        """
        queries = self._heads(self.q_proj(hidden), self.q_norm, angles)
        keys = self._heads(self.k_proj(hidden), self.k_norm, angles)
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        scores = queries @ keys.transpose(2, 3) * self.scale
        if mask is None:
            mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
        return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)

    def _heads(
        self, projected: Tensor, norm: nn.Module | None, angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """[batch, seq, heads * head_dim] to [batch, heads, seq, head_dim], normed and turned."""
        if norm is not None and self.norm_all_heads:
            projected, norm = norm(projected), None
        heads = projected.view(*projected.shape[:-1], -1, self.head_dim)
        if norm is not None:
            heads = norm(heads)
        heads = heads.transpose(1, 2)
        return heads if angles is None else rotate(heads, *angles)

"""Causal self-attention: grouped-query, with rotary positions, padding and a key/value cache.

It knows a single layer; `visible_keys` computes the attention mask once for all layers. Where
queries, keys and values come from is what kinds of attention differ in: `Attention` is the usual
one, and `latent_attention` has the other.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import ModelConfig
from moe_megatron.model.layers import build_norm


def visible_keys(
    valid: Tensor | None,
    queries: Tensor,
    num_keys: int,
    window: int | None = None,
    samples: Tensor | None = None,
) -> Tensor | None:
    """visible[q, k] = (q - window <= k <= q and valid[k]) or k == q: what each query attends to.

    A query always sees itself, so that the softmax of a padding position is over at least one key.

    Args:
        valid: bool [batch, keys], False for padding; None if there is none.
        queries: int64 [queries], their positions among the keys.
        num_keys: Number of positions from the first cached one to the last query.
        window: How many tokens before its own a query sees; None: all.
        samples: int64 [batch, keys], which sample of its row each key is of, and as many queries: a
            query sees its own alone; None: a row is one sample.

    Returns:
        bool [batch or 1, 1, queries, keys]; None for plain causal attention over one square block.
    """
    narrow = window is not None and window < num_keys - 1
    if valid is None and samples is None and len(queries) == num_keys and not narrow:
        return None
    keys = torch.arange(num_keys, device=queries.device)
    causal, itself = keys <= queries.unsqueeze(1), keys == queries.unsqueeze(1)
    if window is not None and narrow:
        causal &= keys >= queries.unsqueeze(1) - window
    if samples is not None:
        causal = causal & (samples.unsqueeze(2) == samples.unsqueeze(1)).unsqueeze(1)
    if valid is None:
        return causal if samples is not None else causal[None, None]
    return (causal & valid[:, None, None, :]) | itself


def token_positions(valid: Tensor | None, queries: Tensor) -> Tensor:
    """Positions of the queries, int64 [batch or 1, queries], from 0 at the first valid token.

    Args:
        valid: bool [batch, keys], False for padding; None if there is none.
        queries: int64 [queries], their positions among the keys.
    """
    if valid is None:
        return queries.unsqueeze(0)
    return (valid.long().cumsum(dim=1) - 1).clamp_min(0)[:, queries]


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """angle[p, i] = p * base^(-2i / head_dim), i < head_dim / 2: cos and sin of RoPE.

    From Su et al., arXiv:2104.09864; feature i is rotated together with feature
    i + head_dim / 2, or, interleaved, feature 2i together with 2i + 1.

    Args:
        positions: int64 [batch or 1, seq].
        head_dim: Width of one head, or of its rotated part; even.
        base: Base of the frequencies.

    Returns:
        Cosines and sines, both float32 [batch or 1, 1, seq, head_dim].
    """
    # Recomputed each time: if stored as a buffer, model.to(bfloat16) would round the frequencies.
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    half = positions[:, None, :, None].float() * (1.0 / base**exponents)
    angles = torch.cat((half, half), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 being the halves of the features.

    Args:
        heads: [batch, heads, seq, head_dim].
        cos: From `rotary_angles`; if narrower than `heads`, the remaining features stay unchanged.
        sin: From `rotary_angles`.
        interleaved: Whether x1 are the even features and x2 the odd ones.
    """
    width = cos.shape[-1]
    if width < heads.shape[-1]:
        rotated = rotate(heads[..., :width], cos, sin, interleaved=interleaved)
        return torch.cat((rotated, heads[..., width:]), dim=-1)
    if interleaved:
        halves = torch.cat((heads[..., 0::2], heads[..., 1::2]), dim=-1)
        first, second = rotate(halves, cos, sin).chunk(2, dim=-1)
        return torch.stack((first, second), dim=-1).flatten(-2)
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return heads * cos.to(heads.dtype) + rotated * sin.to(heads.dtype)


class KeyValueCache:
    """Keys and values of the positions seen so far, by global layer number."""

    def __init__(self) -> None:
        self.length = 0
        """Number of cached positions; the model advances it after all layers."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [batch, kv_heads, seq, head_dim]; returns all keys and values, old ones first."""
        if layer in self._layers:
            old_keys, old_values = self._layers[layer]
            keys = torch.cat((old_keys, keys), dim=2)
            values = torch.cat((old_values, values), dim=2)
        self._layers[layer] = (keys, values)
        return keys, values


class CausalAttention(nn.Module, ABC):
    """What all kinds of attention do with queries, keys and values."""

    sinks: nn.Parameter | None
    o_proj: nn.Linear

    def __init__(self, config: ModelConfig, layer: int, scale: float, value_width: int) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = config.attention_dropout
        self.scale = scale
        bias = config.add_bias or config.attention_output_bias
        self.o_proj = nn.Linear(value_width, config.hidden_size, bias=bias)
        heads = config.num_attention_heads
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.attention_sinks else None

    @abstractmethod
    def project(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of [batch, seq, hidden], rotated.

        Returns:
            Each [batch, heads, seq, width]; there may be fewer heads of keys and values, of which
            each serves a group of queries.
        """

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """O = softmax(scale * Q K^T + mask) V, projected back to the hidden size.

        Args:
            hidden: [batch, seq, hidden].
            angles: From `rotary_angles`; None without rotary positions.
            mask: From `visible_keys`.
            cache: Earlier positions, to which these are appended.

        Returns:
            [batch, seq, hidden].
        """
        queries, keys, values = self.project(hidden, angles)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        dropout = self.dropout if self.training else 0.0
        if self.sinks is None:
            mixed = functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=True,
            )
        else:
            weights = functional.dropout(self._weights(queries, keys, mask), dropout)
            mixed = weights.to(values.dtype) @ _for_each_query(values, queries)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return output

    def attention_weights(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """softmax(scale * Q K^T + mask), which `forward` does not always hold in memory.

        Args:
            hidden: [batch, seq, hidden], as for `forward`.
            angles: From `rotary_angles`.
            mask: From `visible_keys`.

        Returns:
            [batch, heads, queries, keys], rows summing to 1; with sinks, to less.
        """
        queries, keys, _ = self.project(hidden, angles)
        return self._weights(queries, keys, mask)

    def _weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """A sink is one more logit of each head, whose share of the softmax goes to no token."""
        scores = queries @ _for_each_query(keys, queries).transpose(2, 3) * self.scale
        if mask is None:
            mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]


def _for_each_query(heads: Tensor, queries: Tensor) -> Tensor:
    """Keys or values repeated for each query head of their group."""
    return heads.repeat_interleave(queries.shape[1] // heads.shape[1], dim=1)


class Attention(CausalAttention):
    """Causal self-attention; groups of query heads share a key/value head (arXiv:2305.13245)."""

    q_norm: nn.Module | None
    k_norm: nn.Module | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        self.head_dim = config.attention_head_dim
        query_width = config.num_attention_heads * self.head_dim
        super().__init__(config, layer, config.softmax_scale, query_width)
        hidden, bias = config.hidden_size, config.add_bias or config.qkv_bias
        kv_width = config.key_value_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, query_width, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.interleaved = config.rotary_interleaved
        self.norm_last = config.qk_norm_after_rotation
        self.norm_all_heads = config.qk_norm_scope == "all_heads"
        widths = (query_width, kv_width) if self.norm_all_heads else (self.head_dim,) * 2
        self.q_norm, self.k_norm = (
            build_norm(config, width) if config.qk_norm else None for width in widths
        )

    def project(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each a matrix times the hidden states."""
        queries = self._heads(self.q_proj(hidden), self.q_norm, angles)
        keys = self._heads(self.k_proj(hidden), self.k_norm, angles)
        return queries, keys, self._heads(self.v_proj(hidden), None, None)

    def _heads(
        self, projected: Tensor, norm: nn.Module | None, angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """[batch, seq, heads * head_dim] to [batch, heads, seq, head_dim], normed and rotated."""
        if norm is not None and self.norm_all_heads:
            projected, norm = norm(projected), None
        heads = projected.view(*projected.shape[:-1], -1, self.head_dim)
        if norm is not None and not self.norm_last:
            heads, norm = norm(heads), None
        heads = heads.transpose(1, 2)
        if angles is not None:
            heads = rotate(heads, *angles, interleaved=self.interleaved)
        return heads if norm is None else norm(heads)

"""Latent attention (MLA, DeepSeek-V2, arXiv:2405.04434): keys and values from one narrow latent.

    c = norm(W_dkv x),  k_h = [W_uk,h c ; rotated W_kr x],  v_h = W_uv,h c
    q_h = [W_uq,h c_q ; rotated W_qr,h c_q],  c_q = norm(W_dq x), or x itself at full rank

The rotated part of the keys is the same for all heads. Here the keys and values of all heads are
computed and cached, as in training; it does not know the form of inference that caches the latent.
"""

import torch
from torch import Tensor, nn

from moe_megatron.config import LatentAttention as LatentConfig
from moe_megatron.config import ModelConfig
from moe_megatron.model.attention import CausalAttention, rotate
from moe_megatron.model.layers import build_norm


class LatentAttention(CausalAttention):
    """Causal self-attention whose queries, keys and values have low rank."""

    q_norm: nn.Module | None
    kv_norm: nn.Module | None

    def __init__(self, config: ModelConfig, latent: LatentConfig, layer: int) -> None:
        heads, self.latent = config.num_attention_heads, latent
        query = latent.qk_head_dim + latent.qk_pos_emb_head_dim
        super().__init__(config, layer, query**-0.5, heads * latent.v_head_dim)
        self.heads = heads
        rank, kv_rank, hidden = latent.q_lora_rank, latent.kv_lora_rank, config.hidden_size
        self.q_norm = self.kv_norm = None
        epsilon = latent.norm_epsilon
        if rank is None:
            self.q_proj = nn.Linear(hidden, heads * query, bias=False)
        else:
            self.q_down_proj = nn.Linear(hidden, rank, bias=False)
            self.q_up_proj = nn.Linear(rank, heads * query, bias=False)
            self.q_norm = build_norm(config, rank, epsilon) if config.qk_norm else None
        self.kv_down_proj = nn.Linear(hidden, kv_rank + latent.qk_pos_emb_head_dim, bias=False)
        self.kv_norm = build_norm(config, kv_rank, epsilon) if config.qk_norm else None
        up = heads * (latent.qk_head_dim + latent.v_head_dim)
        self.kv_up_proj = nn.Linear(kv_rank, up, bias=False)

    def project(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads; the last features of a head are rotated."""
        latent = self.latent
        plain, rotated = latent.qk_head_dim, latent.qk_pos_emb_head_dim
        queries = self._split(self._queries(hidden), plain, rotated)
        down: Tensor = self.kv_down_proj(hidden)
        compressed, shared = torch.split(down, [latent.kv_lora_rank, rotated], dim=-1)
        compressed = compressed if self.kv_norm is None else self.kv_norm(compressed)
        keys, values = self._split(self.kv_up_proj(compressed), plain, latent.v_head_dim)
        turned = _rotated(shared.unsqueeze(1), angles).expand(-1, self.heads, -1, -1)
        turning = _rotated(queries[1], angles)
        return torch.cat((queries[0], turning), -1), torch.cat((keys, turned), -1), values

    def _queries(self, hidden: Tensor) -> Tensor:
        if self.latent.q_lora_rank is None:
            full: Tensor = self.q_proj(hidden)
            return full
        compressed: Tensor = self.q_down_proj(hidden)
        compressed = compressed if self.q_norm is None else self.q_norm(compressed)
        up: Tensor = self.q_up_proj(compressed)
        return up

    def _split(self, features: Tensor, *widths: int) -> tuple[Tensor, ...]:
        """[batch, seq, heads * sum of widths] to [batch, heads, seq, width] for each width."""
        heads = features.view(*features.shape[:-1], self.heads, sum(widths)).transpose(1, 2)
        return torch.split(heads, list(widths), dim=-1)


def _rotated(heads: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Neighbouring features are rotated together, whatever the rest of the model does."""
    return heads if angles is None else rotate(heads, *angles, interleaved=True)

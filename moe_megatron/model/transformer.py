"""The decoder layer: pre-norm attention followed by an MLP or an MoE layer.

It maps hidden states to hidden states and passes on what its router decided. It does not know
tokens, vocabulary or losses.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.experts import ExpertPool
from moe_megatron.model.attention import Attention, CausalAttention, KeyValueCache
from moe_megatron.model.latent_attention import LatentAttention
from moe_megatron.model.layers import FeedForward, build_norm
from moe_megatron.model.moe_layer import MoELayer
from moe_megatron.model.outputs import RoutingInfo
from moe_megatron.model.router import Router


class DecoderLayer(nn.Module):
    """h = x + s * attention(norm(x)); y = h + s * mlp(norm(h)), s = residual_multiplier.

    The layer has either `moe` or `mlp`.
    """

    moe: MoELayer | None
    mlp: FeedForward | None

    def __init__(self, model: ModelConfig, moe: MoEConfig, layer: int) -> None:
        super().__init__()
        sparse = layer in moe.layer_numbers(model.num_layers)
        experts = moe.num_experts if sparse else None
        self.input_norm = build_norm(model, model.hidden_size)
        latent = model.latent_attention
        self.attention: CausalAttention = (
            Attention(model, layer) if latent is None else LatentAttention(model, latent, layer)
        )
        window = model.sliding_window
        self.has_window = window is not None and (
            not window.layers or bool(window.layers[layer - 1])
        )
        self.mlp_norm = build_norm(model, model.hidden_size)
        self.moe = None if experts is None else MoELayer(model, moe, experts, layer)
        self.mlp = FeedForward(model, model.dense_ffn_size) if experts is None else None
        self.dropout = model.hidden_dropout
        self.multiplier = model.residual_multiplier

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        valid: Tensor | None,
        cache: KeyValueCache | None,
        token_ids: Tensor,
        domain_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> tuple[Tensor, RoutingInfo | None]:
        """Apply the layer to [batch, seq, hidden].

        Args:
            hidden: The residual stream.
            angles: From `attention.rotary_angles`; None without rotary positions.
            mask: From `attention.visible_keys`.
            valid: bool [batch, seq], False for padding; None if there is none.
            cache: Earlier positions, if any.
            token_ids: int64 [batch, seq], for routers that look at them.
            domain_ids: int64 [batch], the same; None: they are not known.
            task_ids: As domain_ids.

        Returns:
            The new residual stream, and the routing of an MoE layer; None for a dense one.
        """
        hidden = hidden + self._update(self.attention(self.input_norm(hidden), angles, mask, cache))
        normed = self.mlp_norm(hidden)
        if self.moe is not None:
            update, info = self.moe(normed, valid, token_ids, domain_ids, task_ids)
            return hidden + self._update(update), info
        assert self.mlp is not None
        return hidden + self._update(self.mlp(normed)), None

    def _update(self, update: Tensor) -> Tensor:
        if self.multiplier != 1.0:
            update = update * self.multiplier
        return functional.dropout(update, self.dropout, self.training)


@torch.no_grad()
def initialize(module: nn.Module, config: ModelConfig) -> None:
    """Draw initial weights as Megatron does.

    Matrices and embeddings are drawn from normal(0, init_std); those that write to the residual
    stream (`o_proj`, `down_proj`) from normal(0, init_std / sqrt(2 * num_layers)), so that its
    variance does not grow with depth (GPT-2). Biases are 0, except the router's. Experts other than
    the model's MLP have drawn their own when they were built.

    Args:
        module: The model; norms are left as they are.
        config: `init_std` and `num_layers` are read.
    """
    if next(module.parameters()).is_meta:  # there is nothing to draw into
        return
    output_std = config.init_std / math.sqrt(2 * config.num_layers)
    own = {
        id(part)
        for pool in module.modules()
        if isinstance(pool, ExpertPool)
        for expert in pool.values()
        if not isinstance(expert, FeedForward)
        for part in expert.modules()
    }
    for name, part in module.named_modules():
        if isinstance(part, CausalAttention) and part.sinks is not None:
            nn.init.normal_(part.sinks, std=config.init_std)
        if id(part) in own or not isinstance(part, nn.Linear | nn.Embedding | Router):
            continue
        writes = name.rpartition(".")[2] in {"o_proj", "down_proj"}
        if not isinstance(part, Router):
            nn.init.normal_(part.weight, std=output_std if writes else config.init_std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        for drawn in part.drawn() if isinstance(part, Router) else ():
            nn.init.normal_(drawn, std=config.init_std)

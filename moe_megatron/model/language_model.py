"""The language model: embedding, decoder layers, output projection and losses.

It puts the parts together; the maths of each part is in its own module. Configuring, saving and
generating are in `moe_model`.

Parameter names are stable (E experts; expert e and layer i count from 0):

    embed_tokens.weight                              [vocab, hidden]
    embed_positions.weight                           [positions, hidden]   learned_absolute only
    layers.{i}.input_norm.weight                     [hidden]
    layers.{i}.attention.{q,k,v,o}_proj.weight
    layers.{i}.attention.{q,k,v}_proj.bias                                 qkv_bias only
    layers.{i}.attention.{q,k}_norm.weight           [head_dim]            qk_norm only
    layers.{i}.attention.sinks                       [heads]               attention_sinks only
    layers.{i}.mlp_norm.weight                       [hidden]
    layers.{i}.mlp.{gate,up,down}_proj.weight                              dense layers
    layers.{i}.moe.router.weight                     [E, hidden]
    layers.{i}.moe.router.expert_bias                [E], a buffer         moe.expert_bias only
    layers.{i}.moe.experts.{e}.{gate,up,down}_proj.weight
    layers.{i}.moe.shared_expert.{gate,up,down}_proj.weight
    layers.{i}.moe.shared_gate.weight                [1, hidden]           shared_expert_gate only
    final_norm.weight                                [hidden]
    lm_head.weight                                   [vocab, hidden]       not with tie_embeddings
    lm_head_bias                                     [vocab]               lm_head_bias only

A matrix is [out, in], as in nn.Linear. Only swiglu has a `gate_proj`. With `add_bias`, and for
LayerNorm, there is a `.bias` beside each weight except those of embeddings and `lm_head`; with
`attention_output_bias`, beside that of `o_proj`. In place of `{q,k,v}_proj`, latent attention has
`q_down_proj`, `q_norm` and `q_up_proj` (or `q_proj`, where queries have full rank), `kv_down_proj`,
`kv_norm` and `kv_up_proj`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron import experts
from moe_megatron.config import Architecture, ModelConfig, MoEConfig
from moe_megatron.experts import resolve
from moe_megatron.model import inputs
from moe_megatron.model.attention import (
    KeyValueCache,
    rotary_angles,
    token_positions,
    visible_keys,
)
from moe_megatron.model.layers import build_norm
from moe_megatron.model.outputs import MoEOutput, RoutingInfo
from moe_megatron.model.support import LOSS_BALANCING, check_supported
from moe_megatron.model.transformer import DecoderLayer, initialize
from moe_megatron.routing import try_router


class LanguageModel(nn.Module):
    """A decoder-only transformer, dense or with experts, with random weights.

    Args:
        architecture: Architecture of the model.

    Raises:
        ConfigError: `MoEModel` does not support the combination.
    """

    embed_positions: nn.Embedding | None
    lm_head: nn.Linear | None
    lm_head_bias: nn.Parameter | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        check_supported(architecture)
        self.architecture = replace(architecture, moe=resolve(architecture.moe))
        try_router(self.moe_config, architecture.model.hidden_size)
        sizes = architecture.model.hidden_size, architecture.expert_hidden_size
        experts.try_expert(self.moe_config, *sizes)
        model, moe, vocab_size = self.model_config, self.moe_config, self.vocab_size
        latent = model.latent_attention
        rotated = model.attention_head_dim * model.rotary_fraction
        self._rotary_width = int(rotated) if latent is None else latent.qk_pos_emb_head_dim
        width, positions = model.hidden_size, model.max_position_embeddings
        learned = model.position_embedding == "learned_absolute"
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.embed_positions = nn.Embedding(positions, width) if learned and positions else None
        self.layers = nn.ModuleList(
            DecoderLayer(model, moe, layer) for layer in range(1, model.num_layers + 1)
        )
        self.final_norm = build_norm(model, width)
        tied = model.tie_embeddings
        self.lm_head = None if tied else nn.Linear(width, vocab_size, bias=False)
        # Not part of lm_head, which a model with tied embeddings does not have.
        self.lm_head_bias = nn.Parameter(torch.zeros(vocab_size)) if model.lm_head_bias else None
        initialize(self, model)

    @property
    def model_config(self) -> ModelConfig:
        """Configuration of the transformer around the experts."""
        return self.architecture.model

    @property
    def moe_config(self) -> MoEConfig:
        """Configuration of experts, router and load balancing."""
        return self.architecture.moe

    @property
    def vocab_size(self) -> int:
        """Number of entries of the vocabulary."""
        return self.architecture.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, in features."""
        return self.model_config.hidden_size

    @property
    def num_layers(self) -> int:
        """Transformer layers, dense and MoE together."""
        return self.model_config.num_layers

    @property
    def num_experts(self) -> int | None:
        """Experts of each MoE layer; None for a dense model."""
        return self.moe_config.num_experts

    @property
    def experts_per_token(self) -> int | None:
        """Experts that each token is sent to; None for a dense model."""
        return None if self.num_experts is None else self.moe_config.top_k

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        domain_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> MoEOutput:
        """Predict the next token at every position.

        Args:
            input_ids: int64 [batch, seq].
            attention_mask: [batch, seq], 1 for a token and 0 for padding, which may be on either
                side. Padding is not attended to, not routed and not in any loss; its logits are
                meaningless.
            labels: int64 [batch, seq], usually the input_ids themselves: they are shifted by one
                here. -100 excludes a position from the loss.
            domain_ids: int64 [batch], the source of the data that each row is from, for routers
                that look at it; -1, or None for all, where that is not known.
            position_ids: int64 [batch, seq], places within a sample where a row holds several, 0
                where one begins: attention stays within it, and its first token is not predicted.
                None: a row is one sample.
            task_ids: int64 [batch], the number of the task of each row, as domain_ids.

        Raises:
            DataError: Shapes or ids are wrong.
        """
        inputs.check_tokens(input_ids, self.vocab_size, self._max_length)
        valid = inputs.valid_tokens(attention_mask, input_ids)
        inputs.check_of_rows("domain", domain_ids, input_ids)
        inputs.check_of_rows("task", task_ids, input_ids)
        inputs.check_positions(position_ids, input_ids)
        hidden, routing = self._decode(input_ids, valid, None, domain_ids, position_ids, task_ids)
        logits = self._project(hidden)
        aux_loss, z_loss, router_loss = self._router_losses(routing, logits)
        lm_loss = loss = None
        if labels is not None:
            inputs.check_labels(labels, input_ids, self.vocab_size)
            if position_ids is not None:
                labels = labels.masked_fill(position_ids == 0, inputs.IGNORED_LABEL)
            lm_loss = inputs.next_token_loss(logits, labels, valid)
            loss = lm_loss + router_loss
        return MoEOutput(
            logits=logits,
            routing=routing,
            aux_loss=aux_loss,
            z_loss=z_loss,
            router_loss=router_loss,
            lm_loss=lm_loss,
            loss=loss,
        )

    def _decode(
        self,
        input_ids: Tensor,
        valid: Tensor | None,
        cache: KeyValueCache | None,
        domain_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[RoutingInfo, ...]]:
        """Hidden states of new tokens [batch, n]; `valid` also covers the cached tokens."""
        config = self.model_config
        past = 0 if cache is None else cache.length
        num_keys = past + input_ids.shape[1]
        queries = torch.arange(past, num_keys, device=input_ids.device)
        positions, samples = token_positions(valid, queries), None
        if position_ids is not None:
            positions, samples = position_ids, (position_ids == 0).cumsum(dim=1)
        mask = visible_keys(valid, queries, num_keys, samples=samples)
        window = None if config.sliding_window is None else config.sliding_window.size
        windowed = mask
        if window is not None:
            windowed = visible_keys(valid, queries, num_keys, window, samples)
        angles = None
        if config.position_embedding == "rope":
            angles = rotary_angles(positions, self._rotary_width, config.rotary_base)
        hidden = self.embed_tokens(input_ids)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(positions)
        if config.embedding_multiplier != 1.0:
            hidden = hidden * config.embedding_multiplier
        hidden = functional.dropout(hidden, config.hidden_dropout, self.training)
        routing = []
        for layer in self.layers:
            new = None if valid is None else valid[:, past:]
            seen = windowed if layer.has_window else mask
            hidden, info = layer(hidden, angles, seen, new, cache, input_ids, domain_ids, task_ids)
            if info is not None:
                routing.append(info)
        if cache is not None:
            cache.length = num_keys
        return self.final_norm(hidden), tuple(routing)

    def _project(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to [..., vocab]."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        logits = functional.linear(hidden, head.weight, self.lm_head_bias)
        divisor = self.model_config.logits_divisor
        return logits if divisor == 1.0 else logits / divisor

    def _router_losses(
        self, routing: tuple[RoutingInfo, ...], logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean aux loss and z-loss over layers, and their sum.

        router_loss = sum_l (c_aux aux_l + c_z z_l + own_l).
        """
        if not routing:
            zero = logits.new_zeros((), dtype=torch.float32)
            return zero, zero, zero
        aux = torch.stack([info.aux_loss for info in routing])
        z = torch.stack([info.z_loss for info in routing])
        balanced = self.moe_config.load_balancing in LOSS_BALANCING
        coefficient = self.moe_config.aux_loss_coef if balanced else 0.0
        total = coefficient * aux.sum() + self.moe_config.z_loss_coef * z.sum()
        own = [info.own_loss for info in routing if info.own_loss is not None]
        total = total + torch.stack(own).sum() if own else total
        return aux.mean(), z.mean(), total

    def _next_logits(self, new: Tensor, valid: Tensor | None, cache: KeyValueCache) -> Tensor:
        hidden, _ = self._decode(new, valid, cache)
        return self._project(hidden[:, -1])

    @property
    def _max_length(self) -> int | None:
        return None if self.embed_positions is None else self.embed_positions.num_embeddings

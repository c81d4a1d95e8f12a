"""Latent attention (MLA) as published models compute it, where Megatron's differs.

Megatron normalises queries whenever it normalises the latents: low-rank queries after their down
projection, full-rank queries before their projection. DeepSeek-V2-Lite and similar models have no
norm in the second case. And the norms of latents may add another epsilon than those of the layers.

Under tensor parallelism Megatron-Core 0.19 gives two things other gradients than one process does:
the rotated part of a key, which all heads share, where it sums over the heads of each rank alone
(Megatron-LM issue 1699), and without sequence parallelism the norm of low-rank queries, whose whole
gradient it adds up over ranks. Here both are what they are in one process.
"""

import dataclasses
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor, nn

from moe_megatron.config import ModelConfig

_WITH_NORM = ("q_layernorm", "kv_layernorm", "linear_q_up_proj", "linear_kv_up_proj")
"""Modules with a norm of latents; Transformer Engine fuses it with the matrix that follows."""


def set_yarn(transformer: TransformerConfig, model: ModelConfig) -> None:
    """Set what Megatron has no flags for in the YaRN positions of latent attention.

    Args:
        transformer: Megatron's configuration, changed in place.
        model: Our configuration.
    """
    scaling = model.rope_scaling
    if model.latent_attention is None or scaling is None:
        return
    for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
        if getattr(scaling, name) is not None:
            setattr(transformer, name, getattr(scaling, name))


class LatentAttention(MLASelfAttention):
    """`MLASelfAttention` without the norm of full-rank queries, and with whole gradients.

    Args:
        latent_epsilon: Added to the variance inside the norms of latents; None: as in other norms.
            All other arguments are those of `MLASelfAttention`.
    """

    def __init__(self, *args: Any, latent_epsilon: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _WITH_NORM if latent_epsilon is not None else ():
            module: Any = getattr(self, name, None)
            if hasattr(module, "eps"):
                module.eps = latent_epsilon
        if not self.config.sequence_parallel:
            _mark_as_whole(getattr(self, "q_layernorm", None))

    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of queries, and those of keys and values beside the rotated part of keys.

        Both leave as from a projection that each rank has whole: [sequence / ranks under sequence
        parallelism, batch, width]. Megatron then gathers the rotated part such that its
        gradient is summed over ranks; without sequence parallelism that is done here.
        """
        queries, latents = super()._qkv_down_projection(hidden_states)
        if self.tp_group.size() == 1:
            return queries, latents
        latent, rotated = self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim
        sequence = self.config.sequence_parallel
        if latents.size(-1) != latent + rotated:
            latents = gather_from_tensor_model_parallel_region(latents)
            if sequence:
                latents = scatter_to_sequence_parallel_region(latents)
        if not sequence:
            compressed, keys = latents.split([latent, rotated], dim=-1)
            keys = copy_to_tensor_model_parallel_region(keys)
            latents = torch.cat([compressed, keys], dim=-1)
        return queries, latents

    def _resolve_qk_norm_config(self, submodules: Any) -> Any:
        if self.config.q_lora_rank is not None:
            return super()._resolve_qk_norm_config(submodules)
        submodules = dataclasses.replace(submodules, q_layernorm=IdentityOp)
        return _NoQueryNorm(self.config, submodules).resolve()


def _mark_as_whole(norm: nn.Module | None) -> None:
    """Have Megatron take the mean over tensor parallel ranks of gradients that are equal there."""
    for parameter in norm.parameters() if norm is not None else ():
        parameter.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]


class _NoQueryNorm(QKNormConfigResolver):
    def _mla_fused_linear_or_default(self, module_spec: Any, module_name: str) -> Any:
        if module_name == "linear_q_proj":
            return self._non_fused_or_default(module_spec, module_name)
        return super()._mla_fused_linear_or_default(module_spec, module_name)

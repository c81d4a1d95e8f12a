"""Latent attention (MLA) as published models compute it, where Megatron's differs.

Megatron normalises queries whenever it normalises the latents: low-rank queries after their down
projection, full-rank queries before their projection. DeepSeek-V2-Lite and similar models have no
norm in the second case. And the norms of latents may add another epsilon than those of the layers.
"""

import dataclasses
from typing import Any

from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
from megatron.core.transformer.multi_latent_attention import MLASelfAttention

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
    """`MLASelfAttention` without the norm of full-rank queries.

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

    def _resolve_qk_norm_config(self, submodules: Any) -> Any:
        if self.config.q_lora_rank is not None:
            return super()._resolve_qk_norm_config(submodules)
        submodules = dataclasses.replace(submodules, q_layernorm=IdentityOp)
        return _NoQueryNorm(self.config, submodules).resolve()


class _NoQueryNorm(QKNormConfigResolver):
    def _mla_fused_linear_or_default(self, module_spec: Any, module_name: str) -> Any:
        if module_name == "linear_q_proj":
            return self._non_fused_or_default(module_spec, module_name)
        return super()._mla_fused_linear_or_default(module_spec, module_name)

"""Latent attention (MLA) without a norm for full-rank queries.

Megatron normalises queries whenever it normalises the latents: low-rank queries after their down
projection, full-rank queries before their projection. DeepSeek-V2-Lite and similar models have no
norm in the second case.
"""

import dataclasses
from typing import Any

from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
from megatron.core.transformer.multi_latent_attention import MLASelfAttention


class LatentAttention(MLASelfAttention):
    """`MLASelfAttention` without the norm of full-rank queries."""

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

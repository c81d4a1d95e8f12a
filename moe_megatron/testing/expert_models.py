"""Small models of transformers with experts, of random weights, for tests of inference."""

from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_EIGHT: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_SIZES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2},
    "olmoe": {"intermediate_size": 48, **_EIGHT},
    "qwen2_moe": {
        "intermediate_size": 64,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        **_EIGHT,
    },
    "qwen3_moe": {"head_dim": 8, "intermediate_size": 64, "moe_intermediate_size": 24, **_EIGHT},
    "deepseek_v3": {"intermediate_size": 48, **_LATENT},
    "gpt_oss": {
        "head_dim": 8,
        "intermediate_size": 24,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "llama": {"intermediate_size": 48},
}
FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3")
"""Those whose experts are matrices one after the other."""
STACKED = "gpt_oss"
"""One whose experts are slices of stacked tensors."""


def save_model(family: str, folder: Path, dtype: torch.dtype = torch.float32, **sizes: Any) -> Path:
    """Save a model of a family, with random weights, as a Hugging Face folder; returns it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**_COMMON, **_SIZES[family], **sizes})
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder

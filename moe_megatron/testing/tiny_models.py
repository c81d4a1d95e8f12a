"""Tiny random transformers models, one or more per family, in odd shapes that break mapping tables.

Among them are three query heads per key/value head, odd numbers of layers, one expert, sixty
experts, dense layers among MoE layers, tied and untied embeddings, and prime vocabulary sizes.
"""

import json
from pathlib import Path
from typing import Any

from moe_megatron.families import FAMILIES

_HEADS = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
_MODEL = {
    **_HEADS,
    "num_hidden_layers": 3,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "intermediate_size": 56,
    "initializer_range": 0.2,
}
_MOE = {**_MODEL, "moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2}
_QWEN2_MOE = {**_MOE, "shared_expert_intermediate_size": 72}
_LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LOCAL = {**_MODEL, "num_local_experts": 4, "num_experts_per_tok": 2}

_LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "q_lora_rank": 24,
}
_DEEPSEEK = {
    **_MODEL,
    "num_hidden_layers": 5,
    "moe_intermediate_size": 40,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
}
_GROUPS = {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_experts_per_tok": 4}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
_SWITCH = {
    "vocab_size": 131,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 56,
    "num_heads": 6,
    "num_layers": 4,
    "num_decoder_layers": 6,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 3,
    "num_experts": 4,
}

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", _LOCAL),
    "mixtral-tied": ("mixtral", {**_LOCAL, "tie_word_embeddings": True, "head_dim": 12}),
    "mixtral-one-expert": (
        "mixtral",
        {**_LOCAL, "num_local_experts": 1, "num_experts_per_tok": 1, "sliding_window": 16},
    ),
    "olmoe": ("olmoe", {**_MOE, "num_key_value_heads": 6}),
    "olmoe-one-head": (
        "olmoe",
        {**_MOE, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 48},
    ),
    "olmoe-groups": ("olmoe", {**_MOE, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen2_moe": ("qwen2_moe", _QWEN2_MOE),
    "qwen2_moe-sixty-experts": (
        "qwen2_moe",
        {**_QWEN2_MOE, "num_experts": 60, "moe_intermediate_size": 8, "num_experts_per_tok": 4},
    ),
    "qwen2_moe-dense-layers": (
        "qwen2_moe",
        {**_QWEN2_MOE, "num_hidden_layers": 5, "decoder_sparse_step": 2, "qkv_bias": False},
    ),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe-dense-layers": (
        "qwen3_moe",
        {**_MOE, "mlp_only_layers": [0, 2], "tie_word_embeddings": True},
    ),
    "qwen3_moe-biases": ("qwen3_moe", {**_MOE, "num_hidden_layers": 1, "attention_bias": True}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, **_LATENT}),
    "deepseek_v2-lite": (
        "deepseek_v2",
        {**_DEEPSEEK, **_LATENT, "q_lora_rank": None, "first_k_dense_replace": 0},
    ),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, **_LATENT, **_GROUPS}),
    "deepseek_v3-yarn": (
        "deepseek_v3",
        {
            **_DEEPSEEK,
            **_LATENT,
            "rope_parameters": {
                **_YARN,
                "original_max_position_embeddings": 4096,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
    ),
    "kimi_k2": (
        "kimi_k2",
        {
            **_DEEPSEEK,
            **_LATENT,
            "num_hidden_layers": 3,
            "n_routed_experts": 12,
            "first_k_dense_replace": 1,
            "rope_parameters": {
                **_YARN,
                "original_max_position_embeddings": 16,
                "beta_fast": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {
            **{k: v for k, v in _DEEPSEEK.items() if k != "first_k_dense_replace"},
            **_LATENT,
            "num_hidden_layers": 4,
            "rms_norm_eps": 1e-2,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        },
    ),
    "glm4_moe": ("glm4_moe", {**_DEEPSEEK, "attention_bias": True, "head_dim": 16}),
    "glm4_moe-qk-norm": (
        "glm4_moe",
        {**_DEEPSEEK, **_GROUPS, "use_qk_norm": True, "first_k_dense_replace": 0},
    ),
    "dots1": (
        "dots1",
        {**_DEEPSEEK, "num_hidden_layers": 3, "norm_topk_prob": True, "head_dim": 16},
    ),
    "dots1-windows": (
        "dots1",
        {
            **_DEEPSEEK,
            "num_hidden_layers": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
            "first_k_dense_replace": 0,
            "sliding_window": 16,
            "max_window_layers": 1,
        },
    ),
    "minimax_m2": (
        "minimax_m2",
        {
            **_LOCAL,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            **_MODEL,
            "moe_intermediate_size": 40,
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_num_shared_experts": 2,
            "pad_token_id": None,  # whose embedding would be zeros, which the smallest step moves
        },
    ),
    "ernie4_5_moe-untied": (
        "ernie4_5_moe",
        {
            **_MODEL,
            "num_hidden_layers": 5,
            "moe_intermediate_size": 40,
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0,
            "moe_layer_end_index": 3,
            "moe_layer_interval": 2,
            "tie_word_embeddings": False,
        },
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        {
            **_MODEL,
            "num_experts": 6,
            "moe_topk": [2, 2, 2],
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "dynamic",
                "alpha": 1000.0,
                "factor": 1.0,
                "rope_theta": 10000.0,
            },
        },
    ),
    "hunyuan_v1_moe-plain": (
        "hunyuan_v1_moe",
        {**_MODEL, "num_experts": 4, "moe_topk": 2, "head_dim": 8, "attention_bias": True},
    ),
    "granitemoe": (
        "granitemoe",
        {
            **_LOCAL,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.4,
            "logits_scaling": 1.5,
        },
    ),
    "granitemoe-tied": (
        "granitemoe",
        {**_LOCAL, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "granitemoeshared": (
        "granitemoeshared",
        {
            **_LOCAL,
            "shared_intermediate_size": 72,
            "residual_multiplier": 0.4,
            "logits_scaling": 1.5,
        },
    ),
    "granitemoeshared-without": ("granitemoeshared", {**_LOCAL, "shared_intermediate_size": 0}),
    "granitemoe-neutral": ("granitemoe", {**_LOCAL, "attention_multiplier": 8**-0.5}),
    "phimoe": ("phimoe", {**_LOCAL, "attention_bias": True, "lm_head_bias": True}),
    "phimoe-plain": ("phimoe", {**_LOCAL, "num_local_experts": 16}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_LOCAL,
            "head_dim": 16,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
        },
    ),
    "gpt_oss-yarn": ("gpt_oss", {**_LOCAL, "head_dim": 16, "num_hidden_layers": 1}),
    "switch_transformers": ("switch_transformers", _SWITCH),
    "switch_transformers-untied": (
        "switch_transformers",
        {
            **_SWITCH,
            "tie_word_embeddings": False,
            "num_sparse_decoder_layers": 6,
            "num_experts": 5,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {**_QWEN2_MOE, **_LINEAR, "num_hidden_layers": 5, "head_dim": 16, "mlp_only_layers": [1]},
    ),
    "qwen3_next-biases": (
        "qwen3_next",
        {**_QWEN2_MOE, **_LINEAR, "num_hidden_layers": 4, "head_dim": 16, "attention_bias": True},
    ),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        {**_QWEN2_MOE, **_LINEAR, "num_hidden_layers": 4, "head_dim": 16},
    ),
    "deepseek_v32": (
        "deepseek_v32",
        {
            **{**_DEEPSEEK, **_LATENT, "num_hidden_layers": 4, "index_topk": 8},
            **{"index_head_dim": 16, "index_n_heads": 4},
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            **{**_LOCAL, "num_hidden_layers": 5, "head_dim": 16, "num_experts_per_tok": 1},
            **{"intermediate_size_mlp": 72, "interleave_moe_layer_step": 2},
        },
    ),
    "llama": ("llama", _MODEL),
    "llama-biases": (
        "llama",
        {**_MODEL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", {**_MODEL, "head_dim": 16, "sliding_window": 16}),
    "qwen2": ("qwen2", {**_MODEL, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_MODEL, "head_dim": 16, "rope_parameters": _YARN}),
}
"""Family and sizes of each example, by name."""


def hf_config(name: str) -> Any:
    """The configuration of an example, as a transformers object of the class that computes it."""
    from transformers import AutoConfig

    family, sizes = EXAMPLES[name]
    return AutoConfig.for_model(FAMILIES[family].computed_by or family, **sizes)


def config_of(name: str) -> dict[str, Any]:
    """The `config.json` of an example."""
    found: dict[str, Any] = hf_config(name).to_dict()
    return {**found, "model_type": EXAMPLES[name][0]}


def build(name: str, *, seed: int = 0) -> Any:
    """The model of an example, in float32; every tensor is random, including norms and biases."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    config = hf_config(name)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and (value.dim() == 1 or key.endswith("bias")):
                value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def save(name: str, folder: Path, *, fused: bool, seed: int = 0) -> Any:
    """Save an example.

    Args:
        name: Key of `EXAMPLES`.
        folder: The folder to write.
        fused: Whether to store experts fused, as in the modules of transformers 5, or one by one.
        seed: Seed of the random weights.

    Returns:
        The model.
    """
    model = build(name, seed=seed)
    model.save_pretrained(folder, save_original_format=not fused)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config["model_type"] != (family := EXAMPLES[name][0]):
        path.write_text(json.dumps({**config, "model_type": family}, indent=2))
    return model


def add_prediction(folder: Path, *, copies: bool = False) -> None:
    """Add a layer for multi-token prediction to a saved DeepSeek-V3 or GLM-4.5, as published.

    transformers leaves such layers out. This one is the last layer again, and what is around it.

    Args:
        folder: What `save` wrote, with experts one by one.
        copies: Whether the layer holds copies of the embedding and of the output projection.
    """
    import json

    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    last, width = config["num_hidden_layers"] - 1, config["hidden_size"]
    old, new = (f"model.layers.{number}." for number in (last, last + 1))
    more = {name.replace(old, new): value * 0.9 for name, value in weights.items() if old in name}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("enorm", "hnorm", "shared_head.norm"), (width,)
    )
    shapes["eh_proj"] = (width, 2 * width)
    generator = torch.Generator().manual_seed(7)
    for name, shape in shapes.items():
        more[f"{new}{name}.weight"] = torch.randn(shape, generator=generator) * 0.2
    if copies:
        more[f"{new}embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
        more[f"{new}shared_head.head.weight"] = weights["lm_head.weight"].clone()
    save_file({**weights, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))

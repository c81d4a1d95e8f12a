"""The text model of Qwen3.5-MoE: as Qwen3-Next, with separate projections of linear attention.

It only converts, as Qwen3-Next does.
"""

from dataclasses import replace

from moe_megatron.families.gated_delta_net import linear_attention
from moe_megatron.families.qwen3_next import HYBRID, QWEN3_NEXT, SHARED
from moe_megatron.families.registry import register_family
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    EVERY_LAYER,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    same_value,
)

_PROJECTIONS = (
    ("in_proj_qkv", "conv_rows"),
    ("in_proj_z", "value_rows"),
    ("in_proj_b", "value_heads"),
    ("in_proj_a", "value_heads"),
)

QWEN3_5_MOE_TEXT = replace(
    QWEN3_NEXT,
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    rows=(*HYBRID, *linear_attention(_PROJECTIONS)),
    fields=(
        *(entry for entry in MODEL_FIELDS if entry.hf != "intermediate_size"),
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("num_experts", "moe_intermediate_size"),
        same_value("moe_intermediate_size", "model.ffn_hidden_size"),
        SHARED,
    ),
    pattern=EVERY_LAYER,
    defaults={
        **{"head_dim": 256, "num_experts": 256, "num_experts_per_tok": 8},
        **{"num_key_value_heads": 2, "moe_intermediate_size": 512, "partial_rotary_factor": 0.25},
    },
    irrelevant={
        "intermediate_size": "all layers have experts",
        "mlp_only_layers": "all layers have experts",
        "attn_output_gate": "tensors show that queries have a gate",
        "mamba_ssm_dtype": "a type in which other programs compute",
        "mtp_num_hidden_layers": "multi-token prediction, which transformers does not read",
        "mtp_use_dedicated_embeddings": "multi-token prediction, which transformers does not read",
    },
)

register_family(QWEN3_5_MOE_TEXT)

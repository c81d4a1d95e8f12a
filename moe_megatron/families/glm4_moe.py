"""GLM-4.5-MoE (also 4.6, 4.7): plain attention with half-rotated heads, DeepSeek-V3's experts."""

from dataclasses import replace

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.family import sigmoid_limits
from moe_megatron.families.latent import MTP, group_limits
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    EXPERT_BIAS,
    OUTSIDE,
    experts,
    qk_norms,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    GROUP_FIELDS,
    HEAD_FIELDS,
    MODEL_FIELDS,
    MTP_FIELD,
    SHARED_EXPERTS,
    moe_fields,
    same_value,
)

ROWS = (
    *(*OUTSIDE, *ATTENTION, *qk_norms(), *DENSE_MLP),
    *(router(), EXPERT_BIAS, *experts(), *shared_experts()),
)
"""All tensors but those of multi-token prediction."""

GLM4_MOE = replace(
    DEEPSEEK_V3,
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    rows=(*ROWS, *MTP),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        same_value("attention_bias", "model.qkv_bias", False),
        same_value("use_qk_norm", "model.qk_norm", False),
        *moe_fields("n_routed_experts", "moe_intermediate_size", None),
        *GROUP_FIELDS,
        SHARED_EXPERTS,
        MTP_FIELD,
    ),
    constants={
        "moe.router.score_function": "sigmoid",
        "moe.expert_bias": True,
        "moe.load_balancing": "none",
    },
    limits_of=lambda config, geometry: [
        *group_limits(config, geometry),
        *sigmoid_limits(config, geometry),
    ],
    checked=(),
    defaults={
        **{"first_k_dense_replace": 1, "n_shared_experts": 1, "num_experts_per_tok": 8},
        **{"num_key_value_heads": 8, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-5},
        "partial_rotary_factor": 0.5,
    },
    reads=("norm_topk_prob",),
    irrelevant={},
    hf_constants={"hidden_act": "silu", "norm_topk_prob": True, "partial_rotary_factor": 1.0},
    latent=False,
)

register_family(GLM4_MOE, preference=5)

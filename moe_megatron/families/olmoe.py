"""OLMoE: many small experts, combine weights that need not sum to 1, norms across all heads."""

from moe_megatron.families.family import Family
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import ATTENTION, OUTSIDE, experts, qk_norms, router
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    negated,
)


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    if not config.get("clip_qkv"):
        return []
    return ["Megatron does not clip queries, keys and values (clip_qkv)."]


OLMOE = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, *qk_norms("q_rows", "kv_rows"), router(), *experts()),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_experts", "intermediate_size", 0.01),
        negated("norm_topk_prob", "moe.router.pre_softmax", True),
        *ATTENTION_BIASES,
    ),
    constants={"model.qk_norm": True, "model.qk_norm_scope": "all_heads"},
    defaults={"num_experts_per_tok": 8, "rms_norm_eps": 1e-5},
    limits_of=_limits,
    reads=("clip_qkv",),
    hf_constants={"hidden_act": "silu"},
)

register_family(OLMOE, preference=4)

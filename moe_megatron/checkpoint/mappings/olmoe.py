"""OLMoE: many small experts, weights that need not sum to 1, norms over all heads at once."""

from typing import Any

from moe_megatron.checkpoint.mappings.family import Family, output_bias_limits
from moe_megatron.checkpoint.mappings.geometry import Geometry
from moe_megatron.checkpoint.mappings.hf_config import HfConfig
from moe_megatron.checkpoint.mappings.rows import ATTENTION, OUTSIDE, experts, qk_norms, router
from moe_megatron.checkpoint.mappings.settings import (
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    negated,
    number,
)


def _limits(config: HfConfig, geometry: Geometry) -> list[Any]:
    found = output_bias_limits(config, geometry)
    if config.get("clip_qkv"):
        found.append("Megatron does not clip queries, keys and values (clip_qkv).")
    return found


OLMOE = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, *qk_norms("q_rows", "kv_rows"), router(), *experts()),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_experts", "intermediate_size", 0.01),
        negated("norm_topk_prob", "moe.pre_softmax", True),
        number("attention_bias", "qkv_bias", "megatron.add-qkv-bias", False),
        number("attention_bias", "proj_bias", "", False),
    ),
    sizes=lambda config, names: {"qk_norm": True},
    constants={"model.qk_norm": True, "model.qk_norm_scope": "all_heads"},
    limits_of=_limits,
    hf_constants={"hidden_act": "silu"},
)

"""Qwen2-MoE (Qwen1.5-MoE too): biases of queries, keys and values, a gated shared expert."""

from moe_megatron.families.family import Family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    LAYER,
    OUTSIDE,
    experts,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    HEAD_FIELDS,
    MODEL_FIELDS,
    SPARSE_STEP,
    moe_fields,
    negated,
    number,
)
from moe_megatron.families.sliding import window_flags
from moe_megatron.families.table import Scope, one

_GATE = one(
    "mlp.shared_experts.gate_weight",
    LAYER + "mlp.shared_expert_gate.weight",
    1,
    "hidden",
    scope=Scope.MOE,
    when="shared_width",
)

QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        *DENSE_MLP,
        router(),
        *experts(),
        *shared_experts("shared_expert"),
        _GATE,
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_experts", "moe_intermediate_size"),
        negated("norm_topk_prob", "moe.pre_softmax", True),
        number("qkv_bias", "qkv_bias", "megatron.add-qkv-bias", True),
        number(
            "shared_expert_intermediate_size", "shared_width", "moe.shared_expert_hidden_size", 5632
        ),
    ),
    pattern=SPARSE_STEP,
    flags=lambda config: {"moe-shared-expert-gate": True, **window_flags(config)},
    hf_constants={"hidden_act": "silu", "use_sliding_window": False},
)

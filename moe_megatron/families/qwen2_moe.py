"""Qwen2-MoE (also Qwen1.5-MoE): biases of queries, keys and values, a gated shared expert."""

from moe_megatron.families.family import Family
from moe_megatron.families.registry import register_family
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
    Field,
    moe_fields,
    negated,
    same_value,
)
from moe_megatron.families.sliding import (
    BY_LAYER,
    alternating_up_to,
    as_listed,
    sliding_window,
)
from moe_megatron.families.table import Scope, one_to_one

GATE = one_to_one(
    "mlp.shared_experts.gate_weight",
    LAYER + "mlp.shared_expert_gate.weight",
    1,
    "hidden",
    scope=Scope.MOE,
    when="shared_width",
)

SHARED = Field(
    hf="shared_expert_intermediate_size",
    ours="moe.shared_expert_hidden_size",
    default=5632,
    read=lambda width, _: width or None,
    write=lambda width, _: width or 0,
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
        GATE,
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_experts", "moe_intermediate_size"),
        negated("norm_topk_prob", "moe.router.pre_softmax", True),
        same_value("qkv_bias", "model.qkv_bias", True),
        SHARED,
    ),
    pattern=SPARSE_STEP,
    constants={"moe.shared_expert_gate": True},
    defaults={"num_experts_per_tok": 4, "num_key_value_heads": 16, "sliding_window": 4096},
    computed_fields=sliding_window(as_listed(alternating_up_to), switched=True),
    reads=BY_LAYER,
    hf_constants={"hidden_act": "silu", "use_sliding_window": False},
)

register_family(QWEN2_MOE, preference=3)

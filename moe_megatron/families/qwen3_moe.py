"""Qwen3-MoE: queries and keys are normalized per head; some layers may be dense."""

from moe_megatron.families.family import Family
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    OUTSIDE,
    experts,
    qk_norms,
    router,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    SPARSE_STEP,
    moe_fields,
    negated,
)
from moe_megatron.families.sliding import SWITCHED, every_layer, sliding_window

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, *qk_norms(), *DENSE_MLP, router(), *experts()),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("num_experts", "moe_intermediate_size"),
        negated("norm_topk_prob", "moe.router.pre_softmax", True),
    ),
    pattern=SPARSE_STEP,
    constants={"model.qk_norm": True},
    defaults={"num_experts_per_tok": 8, "num_key_value_heads": 4, "sliding_window": 4096},
    computed_fields=sliding_window(every_layer, switched=True),
    reads=SWITCHED,
    irrelevant={"max_window_layers": "transformers gives all layers the window, or none"},
    hf_constants={"hidden_act": "silu", "use_sliding_window": False},
)

register_family(QWEN3_MOE, preference=2)

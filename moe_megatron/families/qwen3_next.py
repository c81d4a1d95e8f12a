"""Qwen3-Next: linear attention in three of four layers, 512 experts and a gated shared one.

It only converts: bit by bit, with attention of both kinds kept as it is. Norms are kept too; their
weights are added to 1 in this family. Multi-token prediction, which transformers does not read, is
carried along.
"""

from dataclasses import replace

from moe_megatron.families import gated_delta_net, qwen2_moe
from moe_megatron.families.family import Family
from moe_megatron.families.gated_delta_net import GATED_ATTENTION, linear_attention
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    DENSE_MLP,
    LAYER,
    OUTSIDE,
    experts,
    mlp_norms,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    SPARSE_STEP,
    moe_fields,
    negated,
)
from moe_megatron.families.table import one_to_one

HYBRID = (
    *OUTSIDE,
    one_to_one("input_layernorm.weight", LAYER + "input_layernorm.weight", "hidden"),
    *mlp_norms(),
    *GATED_ATTENTION,
    *DENSE_MLP,
    *(router(), *experts(), *shared_experts("shared_expert"), qwen2_moe.GATE),
)
"""The tensors of both families of this kind, but for linear attention."""

SHARED = replace(qwen2_moe.SHARED, default=512)

QWEN3_NEXT = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    rows=(
        *HYBRID,
        *linear_attention((("in_proj_qkvz", "qkvz_rows"), ("in_proj_ba", "two_value_heads"))),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("num_experts", "moe_intermediate_size"),
        negated("norm_topk_prob", "moe.router.pre_softmax", False),
        SHARED,
    ),
    pattern=SPARSE_STEP,
    constants={"model.qk_norm": True, "moe.shared_expert_gate": True},
    defaults={
        **{"head_dim": 256, "num_experts": 512, "num_experts_per_tok": 10},
        **{"num_key_value_heads": 2, "moe_intermediate_size": 512, "partial_rotary_factor": 0.25},
        "intermediate_size": 5632,
    },
    reads=gated_delta_net.KEYS,
    layout=gated_delta_net.layout,
    irrelevant={"use_sliding_window": "transformers has no windows in this family"},
    carried=(r"mtp\..*",),
    untrained=gated_delta_net.WHY_UNTRAINED,
)

register_family(QWEN3_NEXT)

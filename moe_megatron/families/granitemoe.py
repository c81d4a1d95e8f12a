"""Granite-MoE: experts as in Mixtral but stored in one tensor, and four multipliers."""

from dataclasses import replace

from moe_megatron.families.family import Family
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import ATTENTION, LAYER, OUTSIDE, experts, router
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    same_value,
)
from moe_megatron.families.table import Form, Row, Source

_BLOCK = LAYER + "block_sparse_moe."
_NAMES = {
    "linear_fc1": ("input_linear", "gate_up_proj"),
    "linear_fc2": ("output_linear", "down_proj"),
}


def _stacked(row: Row) -> Row:
    classic, fused = _NAMES[row.key.split(".")[-2]]
    return replace(
        row,
        source=Source((f"{_BLOCK}{classic}.weight",), Form.STACK),
        fused=Source((f"{_BLOCK}experts.{fused}",), Form.STACK),
    )


GRANITEMOE = Family(
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        router("block_sparse_moe.router.layer.weight", fused="block_sparse_moe.router.weight"),
        *(_stacked(row) for row in experts()),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("num_local_experts", "intermediate_size"),
        same_value("embedding_multiplier", "model.embedding_multiplier", 1.0),
        same_value("attention_multiplier", "model.attention_multiplier", 1.0),
        same_value("residual_multiplier", "model.residual_multiplier", 1.0),
        same_value("logits_scaling", "model.logits_divisor", 1.0),
    ),
    hf_constants={"hidden_act": "silu"},
)

register_family(GRANITEMOE, preference=8)

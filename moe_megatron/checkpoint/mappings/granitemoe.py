"""Granite-MoE: Mixtral's experts kept in one tensor, and four multipliers.

Megatron has no multipliers of embeddings, residuals, attention and logits together, so a model
whose multipliers are not neutral comes out differently there; its weights are exact.
"""

from dataclasses import replace

from moe_megatron.checkpoint.mappings.family import Family, output_bias_limits
from moe_megatron.checkpoint.mappings.geometry import Geometry
from moe_megatron.checkpoint.mappings.hf_config import HfConfig, real
from moe_megatron.checkpoint.mappings.rows import ATTENTION, LAYER, OUTSIDE, experts, router
from moe_megatron.checkpoint.mappings.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
)
from moe_megatron.checkpoint.mappings.table import Form, Row, Source

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


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    neutral = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}
    neutral["attention_multiplier"] = geometry.head_dim**-0.5
    found = [key for key, value in neutral.items() if real(config, key, 1.0) != value]
    told = [f"Megatron has no {', '.join(found)}."] if found else []
    return [*told, *output_bias_limits(config, geometry)]


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
    ),
    limits_of=_limits,
    hf_constants={"hidden_act": "silu"},
)

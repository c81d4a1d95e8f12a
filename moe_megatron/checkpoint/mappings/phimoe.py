"""PhiMoE (Phi-3.5-MoE): LayerNorm, biases of the attention and of the output projection.

Megatron chooses experts by top-k, PhiMoE by its sparse mixer, and Megatron has no bias on the
output projection (it travels as `hugging_face.lm_head.bias`); weights are exact, computation is
not.
"""

from moe_megatron.checkpoint.mappings.family import Family, output_bias_limits
from moe_megatron.checkpoint.mappings.geometry import Geometry
from moe_megatron.checkpoint.mappings.hf_config import HfConfig
from moe_megatron.checkpoint.mappings.rows import (
    ATTENTION,
    LAYER_NORM_BIASES,
    OUTSIDE,
    experts,
    router,
)
from moe_megatron.checkpoint.mappings.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    number,
)
from moe_megatron.checkpoint.mappings.sliding import window_flags
from moe_megatron.checkpoint.mappings.table import Scope, one

_BLOCK = "block_sparse_moe"


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    found = ["Megatron has no sparse mixer; it would weigh experts by a softmax over the chosen."]
    if geometry.head_bias:
        found.append("Megatron has no bias on the output projection.")
    return [*found, *output_bias_limits(config, geometry)]


PHIMOE = Family(
    name="phimoe",
    architecture="PhimoeForCausalLM",
    rows=(
        *OUTSIDE,
        one(
            "hugging_face.lm_head.bias",
            "lm_head.bias",
            "vocab",
            scope=Scope.MODEL,
            when="head_bias",
        ),
        *ATTENTION,
        *LAYER_NORM_BIASES,
        router(f"{_BLOCK}.gate.weight", fused="mlp.router.weight"),
        *experts(_BLOCK, ("w1", "w3", "w2")),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        number("lm_head_bias", "head_bias", "", False),
        *moe_fields("num_local_experts", "intermediate_size"),
        number("input_jitter_noise", "", "moe.input_jitter", 0.0),
    ),
    constants={"model.norm": "LayerNorm"},
    flags=window_flags,
    limits_of=_limits,
    hf_constants={"hidden_act": "silu"},
    rope_base=1e6,
)

"""Mixtral: every layer has experts; the weights of the chosen ones are a softmax over them."""

from moe_megatron.families.family import Family
from moe_megatron.families.rows import ATTENTION, OUTSIDE, experts, router
from moe_megatron.families.settings import HEAD_FIELDS, MODEL_FIELDS, moe_fields, number
from moe_megatron.families.sliding import window_flags

_BLOCK = "block_sparse_moe"

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        router(f"{_BLOCK}.gate.weight", fused="mlp.gate.weight"),
        *experts(_BLOCK, ("w1", "w3", "w2")),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_local_experts", "intermediate_size"),
        number("router_jitter_noise", "", "moe.input_jitter", 0.0),
    ),
    flags=window_flags,
    hf_constants={"hidden_act": "silu"},
    rope_base=1e6,
)

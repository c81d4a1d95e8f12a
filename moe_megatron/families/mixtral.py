"""Mixtral: every layer has experts; combine weights are a softmax over the chosen experts."""

from moe_megatron.families.family import Family
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import ATTENTION, OUTSIDE, experts, router
from moe_megatron.families.settings import HEAD_FIELDS, MODEL_FIELDS, moe_fields, null_if_neutral
from moe_megatron.families.sliding import WINDOW, every_layer, sliding_window

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
        null_if_neutral("router_jitter_noise", "moe.input_jitter", 0.0),
    ),
    defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    computed_fields=sliding_window(every_layer),
    reads=WINDOW,
    hf_constants={"hidden_act": "silu"},
    rope_base=1e6,
)

register_family(MIXTRAL, preference=1)

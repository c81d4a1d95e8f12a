"""PhiMoE (Phi-3.5-MoE): SparseMixer, LayerNorm, biases in attention and output projection."""

from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    LAYER_NORM_BIASES,
    OUTSIDE,
    experts,
    router,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    null_if_neutral,
    same_value,
)
from moe_megatron.families.sliding import WINDOW, every_layer, sliding_window
from moe_megatron.families.table import Scope, one_to_one

_BLOCK = "block_sparse_moe"


PHIMOE = Family(
    name="phimoe",
    architecture="PhimoeForCausalLM",
    rows=(
        *OUTSIDE,
        one_to_one(
            "output_layer.bias",
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
        same_value("lm_head_bias", "model.lm_head_bias", False),
        *moe_fields("num_local_experts", "intermediate_size"),
        null_if_neutral("input_jitter_noise", "moe.input_jitter", 0.0),
        same_value("router_jitter_noise", "moe.router.jitter", 0.01),
    ),
    irrelevant={"original_max_position_embeddings": "that of rope_scaling counts"},
    constants={"model.norm": "LayerNorm", "moe.router.name": "sparse_mixer"},
    defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    computed_fields=sliding_window(every_layer),
    reads=WINDOW,
    checked=(
        only("num_experts_per_tok", 2, because="SparseMixer chooses two experts for each token"),
        only("hidden_dropout", 0, because="there is no dropout of features in PhiMoE"),
    ),
    hf_constants={"hidden_act": "silu"},
    rope_base=1e6,
)

register_family(PHIMOE, preference=9)

"""Dense decoders, which upcycling starts from: Llama, Mistral, Qwen2 and Qwen3."""

from dataclasses import replace

from moe_megatron.families.family import Family
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    MLP_BIASES,
    OUTSIDE,
    qk_norms,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    NO_LAYER,
    same_value,
)
from moe_megatron.families.sliding import (
    BY_LAYER,
    WINDOW,
    as_listed,
    every_layer,
    from_layer,
    sliding_window,
)

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, *DENSE_MLP, *MLP_BIASES),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        same_value("mlp_bias", "model.add_bias", False),
    ),
    pattern=NO_LAYER,
    hf_constants={"hidden_act": "silu"},
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    architecture="MistralForCausalLM",
    fields=(*MODEL_FIELDS, *HEAD_FIELDS),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    computed_fields=sliding_window(every_layer),
    reads=WINDOW,
    hf_constants={"hidden_act": "silu", "sliding_window": None},
)

QWEN2 = replace(
    MISTRAL,
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    constants={"model.qkv_bias": True},
    defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    computed_fields=sliding_window(as_listed(from_layer), switched=True),
    reads=BY_LAYER,
    hf_constants={"hidden_act": "silu", "use_sliding_window": False},
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, *qk_norms(), *DENSE_MLP),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
    ),
    defaults={**QWEN2.defaults, "head_dim": 128},
    constants={"model.qk_norm": True},
)

register_family(LLAMA, preference=10)
register_family(MISTRAL)
register_family(QWEN2, preference=12)
register_family(QWEN3, preference=11)

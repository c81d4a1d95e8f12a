"""dots.llm1: plain attention with norms of queries and keys, and DeepSeek-V3's experts."""

from dataclasses import replace

from moe_megatron.families.fields import only
from moe_megatron.families.glm4_moe import GLM4_MOE, ROWS
from moe_megatron.families.registry import register_family
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    GROUP_FIELDS,
    HEAD_FIELDS,
    MODEL_FIELDS,
    SHARED_EXPERTS,
    moe_fields,
)
from moe_megatron.families.sliding import as_listed, from_layer, sliding_window

DOTS1 = replace(
    GLM4_MOE,
    name="dots1",
    architecture="Dots1ForCausalLM",
    rows=ROWS,
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("n_routed_experts", "moe_intermediate_size", None),
        *GROUP_FIELDS,
        SHARED_EXPERTS,
    ),
    constants={**GLM4_MOE.constants, "model.qk_norm": True},
    computed_fields=sliding_window(as_listed(from_layer)),
    fields_from_names=lambda config, names: {},
    layout=lambda config, names: {},
    extra_links=lambda geometry: [],
    defaults={
        **{"norm_topk_prob": False, "sliding_window": 4096, "max_window_layers": 62},
        "num_key_value_heads": 32,
    },
    reads=("norm_topk_prob", "sliding_window", "max_window_layers", "layer_types"),
    checked=(
        only("scoring_func", "sigmoid", "noaux_tc", because="the router scores by sigmoids"),
        only("moe_layer_freq", 1, because="all layers after the first dense ones have experts"),
    ),
    irrelevant={
        "topk_method": "groups and a bias always select the experts",
        "use_sliding_window": "sliding_window and layer_types say where windows are",
    },
    hf_constants={"hidden_act": "silu", "norm_topk_prob": True},
)

register_family(DOTS1)

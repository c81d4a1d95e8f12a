"""dots.llm1: plain attention with norms of queries and keys, and DeepSeek-V3's experts."""

from dataclasses import replace
from functools import partial

from moe_megatron.families.family import sigmoid_limits
from moe_megatron.families.glm4_moe import GLM4_MOE
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    EXPERT_BIAS,
    OUTSIDE,
    experts,
    qk_norms,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    GROUP_FIELDS,
    HEAD_FIELDS,
    MODEL_FIELDS,
    SHARED_EXPERTS,
    moe_fields,
)
from moe_megatron.families.sliding import sliding_window

_WINDOW = {"sliding_window": 4096, "max_window_layers": 62, "use_sliding_window": True}
"""What transformers assumes where `config.json` says nothing."""

DOTS1 = replace(
    GLM4_MOE,
    name="dots1",
    architecture="Dots1ForCausalLM",
    rows=(
        *(*OUTSIDE, *ATTENTION, *qk_norms(), *DENSE_MLP),
        *(router(), EXPERT_BIAS, *experts(), *shared_experts()),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        *moe_fields("n_routed_experts", "moe_intermediate_size", None),
        *GROUP_FIELDS,
        SHARED_EXPERTS,
    ),
    constants={**GLM4_MOE.constants, "model.qk_norm": True},
    computed_fields=lambda config: sliding_window({**_WINDOW, **config}),
    fields_from_names=lambda config, names: {},
    layout=lambda config, names: {},
    extra_links=lambda geometry: [],
    limits_of=partial(sigmoid_limits, normalized=False),
    hf_constants={"hidden_act": "silu", "norm_topk_prob": True},
)

register_family(DOTS1)

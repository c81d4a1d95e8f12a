"""MiniMax-M2: norms across all heads, partly rotated heads, a biased sigmoid router."""

from dataclasses import replace
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.hf_config import HfConfig, read_float, read_int, read_list
from moe_megatron.families.registry import register_family
from moe_megatron.families.rope import parameters
from moe_megatron.families.rows import (
    ATTENTION,
    EXPERT_BIAS,
    LAYER,
    OUTSIDE,
    experts,
    qk_norms,
    router,
)
from moe_megatron.families.settings import (
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    null_if_neutral,
)
from moe_megatron.families.table import Source

_BLOCK = "block_sparse_moe"
_OF_OTHERS = (
    "layernorm_full_attention_alpha layernorm_full_attention_beta layernorm_linear_attention_alpha "
    "layernorm_linear_attention_beta layernorm_mlp_alpha layernorm_mlp_beta mlp_intermediate_size "
    "shared_moe_mode"
).split()
_PREDICTION = ("mtp_transformer_layers", "num_mtp_modules", "use_mtp")
_BIAS = "e_score_correction_bias"


def _computed(config: HfConfig) -> dict[str, Any]:
    """Published checkpoints give the number of rotated features, not their fraction."""
    if any(kind != 1 for kind in read_list(config, "attn_type_list")):
        raise MappingError(
            "config.json has layers of linear attention (attn_type_list), but only layers of plain "
            "attention (1) are computed here; this model cannot be converted."
        )
    if not config.get("rotary_dim") or parameters(config).get("partial_rotary_factor") is not None:
        return {}
    width = read_int(config, "head_dim")
    return {"model.rotary_fraction": read_float(config, "rotary_dim") / max(1, width)}


MINIMAX_M2 = Family(
    name="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        *qk_norms("q_rows", "kv_rows"),
        router(f"{_BLOCK}.gate.weight", fused="mlp.gate.weight"),
        replace(
            EXPERT_BIAS,
            source=Source((f"{LAYER}{_BLOCK}.{_BIAS}",)),
            fused=Source((f"{LAYER}mlp.{_BIAS}",)),
        ),
        *experts(_BLOCK, ("w1", "w3", "w2")),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_local_experts", "intermediate_size"),
        null_if_neutral("router_jitter_noise", "moe.input_jitter", 0.0),
    ),
    constants={
        "model.qk_norm": True,
        "model.qk_norm_scope": "all_heads",
        "moe.router.score_function": "sigmoid",
        "moe.expert_bias": True,
    },
    defaults={
        **{"head_dim": 128, "num_key_value_heads": 8, "num_experts_per_tok": 8},
        "num_local_experts": 256,
    },
    computed_fields=_computed,
    reads=("rotary_dim", "attn_type_list"),
    checked=(
        only("qk_norm_type", "per_layer", because="norms span all heads"),
        only("scoring_func", "sigmoid", because="the router scores by sigmoids"),
        only("shared_intermediate_size", 0, because="there is no shared expert"),
        only("use_qk_norm", True, because="queries and keys are normalized"),
        only("use_routing_bias", True, because="a bias corrects the choice of experts"),
    ),
    irrelevant={
        **dict.fromkeys(_OF_OTHERS, "read by earlier MiniMax models, whose code this shares"),
        **dict.fromkeys(_PREDICTION, "multi-token prediction, which is in no checkpoint"),
        "sliding_window": "transformers has no windows in this family",
    },
    hf_constants={"hidden_act": "silu"},
    rope_base=5e6,
)

register_family(MINIMAX_M2)

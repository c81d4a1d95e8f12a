"""MiniMax-M2: norms across all heads, partly rotated heads, a biased sigmoid router."""

from dataclasses import replace
from typing import Any

from moe_megatron.families.family import Family
from moe_megatron.families.hf_config import HfConfig, read_float, read_int
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
_BIAS = "e_score_correction_bias"


def _rotated(config: HfConfig) -> dict[str, Any]:
    """Published checkpoints give the number of rotated features, not their fraction."""
    if not config.get("rotary_dim") or parameters(config).get("partial_rotary_factor") is not None:
        return {}
    width = read_int(config, "head_dim", 128)
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
    computed_fields=_rotated,
    hf_constants={"hidden_act": "silu"},
    rope_base=5e6,
)

register_family(MINIMAX_M2)

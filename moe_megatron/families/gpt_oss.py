"""GPT-OSS: experts transposed and interleaved in one tensor, biases, attention sinks, windows.

Conversion transposes the experts, so it is not a plain copy of bytes. Published checkpoints hold
the experts in 4 bits (MXFP4), which an import multiplies out; an export writes bf16. Megatron
supports the sinks, windows, clamped activation, biases and YaRN positions.
"""

from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.links import BLOCKS
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import ATTENTION, LAYER, OUTSIDE, router
from moe_megatron.families.settings import (
    HEAD_FIELDS,
    MODEL_FIELDS,
    moe_fields,
    same_value,
)
from moe_megatron.families.sliding import alternating, as_listed, sliding_window
from moe_megatron.families.table import Form, Row, Scope, Source, one_to_one

_MLP = LAYER + "mlp."


def _expert(key: str, name: str, form: Form, *shape: str, packed: Form | None = None) -> Row:
    return Row(
        key=f"mlp.experts.experts.{key}",
        shape=shape,
        source=Source((f"{_MLP}experts.{name}",), form),
        packed=None if packed is None else Source((f"{_MLP}experts.{name}{BLOCKS}",), packed),
        scope=Scope.MOE,
        per_expert=True,
        gated=key.startswith("linear_fc1"),
    )


_window = sliding_window(as_listed(alternating))


def _computed(config: HfConfig) -> dict[str, Any]:
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        raise MappingError(
            "config.json of a gpt_oss model has neither rope_parameters nor rope_scaling, and "
            "versions of transformers differ in what that means; add the one of the weights, or "
            '"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0} if there is none.'
        )
    return _window(config)


GPT_OSS = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        one_to_one(
            "self_attention.core_attention.softmax_offset",
            LAYER + "self_attn.sinks",
            "heads",
        ),
        router("mlp.router.weight"),
        one_to_one("mlp.router.bias", _MLP + "router.bias", "experts", scope=Scope.MOE),
        _expert(
            "linear_fc1.weight",
            "gate_up_proj",
            Form.STACK_T_PAIRS,
            "two_expert_width",
            "hidden",
            packed=Form.STACK_FP4_PAIRS,
        ),
        _expert("linear_fc1.bias", "gate_up_proj_bias", Form.STACK_PAIRS, "two_expert_width"),
        _expert(
            "linear_fc2.weight",
            "down_proj",
            Form.STACK_T,
            "hidden",
            "expert_width",
            packed=Form.STACK_FP4,
        ),
        _expert("linear_fc2.bias", "down_proj_bias", Form.STACK, "hidden"),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *moe_fields("num_local_experts", "intermediate_size"),
        same_value("swiglu_limit", "model.activation_clamp", 7.0),
    ),
    constants={
        "model.activation": "quick_geglu",
        "model.glu_offset": 1.0,
        "model.attention_sinks": True,
        "model.add_bias": True,
    },
    defaults={
        **{"head_dim": 64, "num_key_value_heads": 8, "num_experts_per_tok": 4},
        **{"rms_norm_eps": 1e-5, "sliding_window": 128},
    },
    computed_fields=_computed,
    reads=("sliding_window", "layer_types"),
    checked=(
        only("swiglu_alpha", 1.702, because="Megatron's quick GeGLU multiplies by 1.702"),
        only("attention_bias", True, because="attention has biases here"),
    ),
    irrelevant={
        "hidden_act": "the activation is always that of swiglu_alpha and swiglu_limit",
        "experts_per_token": "another name of num_experts_per_tok in published configurations",
        "initial_context_length": "that of rope_scaling counts",
    },
    hf_constants={"hidden_act": "silu"},
    rope_base=150000.0,
)

register_family(GPT_OSS)

"""The text model of Llama 4: experts transposed in one tensor, a shared expert, interleaved layers.

It only converts. All of its tensors have Megatron's names, but its attention looks within chunks,
every fourth layer has no positions, and a router's scores multiply what the experts read.
"""

from typing import Any

from moe_megatron.families.family import Family
from moe_megatron.families.hf_config import HfConfig, read_int, read_list
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import ATTENTION, LAYER, OUTSIDE, gated_mlp, router
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    Pattern,
    moe_fields,
    null_if_neutral,
    same_value,
)
from moe_megatron.families.table import Form, Row, Scope, Source

_MLP = LAYER + "feed_forward."
_KEPT = "this family is only converted, and config.json keeps it"
_UNREAD = (
    "attention_chunk_size attn_scale attn_temperature_tuning cache_implementation floor_scale "
    "for_llm_compressor layer_types no_rope_layer_interval no_rope_layers use_qk_norm"
).split()


def _expert(key: str, name: str, *shape: str) -> Row:
    return Row(
        key=f"mlp.experts.experts.{key}.weight",
        shape=shape,
        source=Source((f"{_MLP}experts.{name}",), Form.STACK_T),
        scope=Scope.MOE,
        per_expert=True,
        gated=key == "linear_fc1",
    )


def _read_layers(config: HfConfig, layers: int) -> tuple[bool, ...]:
    step, listed = read_int(config, "interleave_moe_layer_step", 1), config.get("moe_layers")
    if listed is not None:
        chosen = read_list(config, "moe_layers")
        return tuple(layer in chosen for layer in range(layers))
    return tuple(step > 0 and (layer + 1) % step == 0 for layer in range(layers))


def _write_layers(layers: tuple[bool, ...]) -> dict[str, Any]:
    return {"moe_layers": [layer for layer, moe in enumerate(layers) if moe]}


LLAMA4_TEXT = Family(
    name="llama4_text",
    architecture="Llama4ForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        *gated_mlp("mlp", _MLP, "ffn", scope=Scope.DENSE),
        router("feed_forward.router.weight"),
        _expert("linear_fc1", "gate_up_proj", "two_expert_width", "hidden"),
        _expert("linear_fc2", "down_proj", "hidden", "expert_width"),
        *gated_mlp("mlp.shared_experts", f"{_MLP}shared_expert.", "shared_width", scope=Scope.MOE),
    ),
    fields=(
        *(entry for entry in MODEL_FIELDS if entry.hf != "intermediate_size"),
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        same_value("intermediate_size_mlp", "model.ffn_hidden_size", 16384),
        *moe_fields("num_local_experts", "intermediate_size"),
        same_value("intermediate_size", "moe.shared_expert_hidden_size"),
        null_if_neutral("router_jitter_noise", "moe.input_jitter", 0.0),
    ),
    pattern=Pattern(_read_layers, _write_layers, keys=("moe_layers", "interleave_moe_layer_step")),
    constants={"moe.router.score_function": "sigmoid", "model.rotary_interleaved": True},
    defaults={
        **{"head_dim": 128, "num_experts_per_tok": 1, "num_key_value_heads": 8},
        **{"num_local_experts": 16, "intermediate_size": 8192, "rms_norm_eps": 1e-5},
    },
    irrelevant=dict.fromkeys(_UNREAD, _KEPT),
    untrained=(
        "its attention looks within chunks, some layers have no positions, and routers multiply "
        "what experts read, which the layers of this toolkit do not compute."
    ),
    rope_base=500000.0,
)

register_family(LLAMA4_TEXT)

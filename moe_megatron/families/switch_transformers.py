"""Switch Transformers: the decoder of an encoder-decoder model becomes a decoder-only one.

Self-attention, norms, routers, experts, dense MLPs and embeddings of the decoder get Megatron keys.
The encoder, cross-attention and tables of relative positions have no place in Megatron's GPT; they
are kept under `hugging_face.`, so that an export is complete. Megatron computes a different
function: no encoder, no relative positions, gelu in place of relu, scaled attention scores. Use the
result as a starting point for training, not as the same model.
"""

from collections.abc import Iterator
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Family, Names
from moe_megatron.families.fields import only
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig, read_int
from moe_megatron.families.links import Link
from moe_megatron.families.registry import register_family
from moe_megatron.families.sensible import MOST_LAYERS
from moe_megatron.families.settings import Pattern, same_value
from moe_megatron.families.table import Form, Row, Scope, Source, kept_links, one_to_one

_LAYER = "decoder.block.{layer}.layer."
_ATTENTION = _LAYER + "0.SelfAttention."
_MLP = _LAYER + "2.mlp."
_NORM = _LAYER + "2.layer_norm.weight"
_EXPERT = _MLP + "experts.expert_{expert}."
_EMBEDDING = "embed_tokens.weight"
_LOCAL_NORM = "mlp.linear_fc1.layer_norm_weight"

ROWS = (
    one_to_one(
        "embedding.word_embeddings.weight", "shared.weight", "vocab", "hidden", scope=Scope.MODEL
    ),
    one_to_one(
        "decoder.final_layernorm.weight",
        "decoder.final_layer_norm.weight",
        "hidden",
        scope=Scope.MODEL,
    ),
    one_to_one(
        "output_layer.weight",
        "lm_head.weight",
        "vocab",
        "hidden",
        scope=Scope.MODEL,
        when="untied",
    ),
    one_to_one(
        "self_attention.linear_qkv.layer_norm_weight", _LAYER + "0.layer_norm.weight", "hidden"
    ),
    Row(
        key="self_attention.linear_qkv.weight",
        shape=("qkv_rows", "hidden"),
        source=Source(tuple(f"{_ATTENTION}{x}.weight" for x in "qkv"), Form.QKV),
    ),
    one_to_one("self_attention.linear_proj.weight", _ATTENTION + "o.weight", "hidden", "q_rows"),
    one_to_one(
        _LOCAL_NORM, _NORM, "hidden", scope=Scope.MOE, aliases=("pre_mlp_layernorm.weight",)
    ),
    one_to_one(_LOCAL_NORM, _NORM, "hidden", scope=Scope.DENSE),
    one_to_one("mlp.linear_fc1.weight", _MLP + "wi.weight", "ffn", "hidden", scope=Scope.DENSE),
    one_to_one("mlp.linear_fc2.weight", _MLP + "wo.weight", "hidden", "ffn", scope=Scope.DENSE),
    one_to_one(
        "mlp.router.weight",
        _MLP + "router.classifier.weight",
        "experts",
        "hidden",
        scope=Scope.MOE,
    ),
    one_to_one(
        "mlp.experts.experts.linear_fc1.weight",
        _EXPERT + "wi.weight",
        "expert_width",
        "hidden",
        scope=Scope.MOE,
        per_expert=True,
    ),
    one_to_one(
        "mlp.experts.experts.linear_fc2.weight",
        _EXPERT + "wo.weight",
        "hidden",
        "expert_width",
        scope=Scope.MOE,
        per_expert=True,
    ),
)


def _sparse(config: HfConfig, side: str, layers: int) -> tuple[bool, ...]:
    sparse = read_int(config, f"num_sparse_{side}_layers", 3)
    step = read_int(config, f"{side}_sparse_step", layers // sparse if sparse else layers)
    if step == 0:
        return (False,) * layers
    return tuple(layer % step == 1 or step == 1 for layer in range(layers))


PATTERN = Pattern(
    lambda config, layers: _sparse(config, "decoder", layers),
    lambda layers: None,
    keys=("num_sparse_decoder_layers", "decoder_sparse_step"),
)


def _layout(config: HfConfig, names: Names) -> dict[str, Any]:
    tied = config.get("tie_word_embeddings", True)
    own = not tied if names is None else any(f"encoder.{_EMBEDDING}" in name for name in names)
    encoder = read_int(config, "num_layers")
    if encoder > MOST_LAYERS:
        raise MappingError(
            f"config.json gives {encoder} layers of the encoder; at most {MOST_LAYERS} are allowed."
        )
    return {
        "encoder_moe_layers": _sparse(config, "encoder", encoder),
        "side_embeddings": own and not tied,
        "position_buckets": read_int(config, "relative_attention_num_buckets", 32),
    }


def _carried(geometry: Geometry) -> list[Link]:
    return kept_links(list(_without_place(geometry)))


def _without_place(geometry: Geometry) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, table = geometry.hidden, (geometry.position_buckets, geometry.heads)
    yield "encoder.final_layer_norm.weight", (hidden,)
    for side in ("encoder", "decoder"):
        yield f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", table
        if geometry.side_embeddings:
            yield f"{side}.{_EMBEDDING}", (geometry.vocab, hidden)
    for layer, moe in enumerate(geometry.encoder_moe_layers):
        prefix = f"encoder.block.{layer}.layer."
        yield from _attention(geometry, prefix + "0.", "SelfAttention")
        yield f"{prefix}1.layer_norm.weight", (hidden,)
        experts = [f"experts.expert_{e}." for e in range(geometry.experts)] if moe else [""]
        if moe:
            yield f"{prefix}1.mlp.router.classifier.weight", (geometry.experts, hidden)
        for expert in experts:
            yield f"{prefix}1.mlp.{expert}wi.weight", (geometry.ffn, hidden)
            yield f"{prefix}1.mlp.{expert}wo.weight", (hidden, geometry.ffn)
    for layer in range(geometry.layers):
        yield from _attention(geometry, f"decoder.block.{layer}.layer.1.", "EncDecAttention")


def _attention(geometry: Geometry, prefix: str, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}layer_norm.weight", (geometry.hidden,)
    for letter in "qkv":
        yield f"{prefix}{kind}.{letter}.weight", (geometry.q_rows, geometry.hidden)
    yield f"{prefix}{kind}.o.weight", (geometry.hidden, geometry.q_rows)


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    return [
        "Only the decoder runs in Megatron: no encoder, no cross-attention, no relative positions.",
        "Megatron scales attention scores and has no relu; the trained function changes.",
    ]


SWITCH_TRANSFORMERS = Family(
    name="switch_transformers",
    architecture="SwitchTransformersForConditionalGeneration",
    rows=ROWS,
    fields=(
        same_value("num_decoder_layers", "model.num_layers", lambda c: read_int(c, "num_layers")),
        same_value("d_model", "model.hidden_size"),
        same_value("num_heads", "model.num_attention_heads"),
        same_value("d_kv", "model.head_dim", 64),
        same_value("d_ff", "model.ffn_hidden_size"),
        same_value("d_ff", "moe.expert_hidden_size"),
        same_value("vocab_size", "data.vocab_size"),
        same_value("layer_norm_epsilon", "model.norm_epsilon", 1e-6),
        same_value("tie_word_embeddings", "model.tie_embeddings", True),
        same_value("num_experts", "moe.num_experts"),
        same_value("router_aux_loss_coef", "moe.aux_loss_coef", 0.001),
        same_value("router_z_loss_coef", "moe.z_loss_coef", 0.001),
        same_value("n_positions", "model.max_position_embeddings", 512),
    ),
    constants={
        "model.activation": "gelu",
        "model.position_embedding": "none",
        "moe.top_k": 1,
        "moe.router.pre_softmax": True,
    },
    pattern=PATTERN,
    layout=_layout,
    extra_links=_carried,
    limits_of=_limits,
    defaults={"num_decoder_layers": 12},
    reads=(
        *("num_layers", "num_sparse_encoder_layers", "encoder_sparse_step"),
        "relative_attention_num_buckets",
    ),
    checked=(
        only("is_encoder_decoder", True, because="the decoder is that of an encoder-decoder model"),
        only("dense_act_fn", "relu", because="an MLP has two matrices here"),
        only("router_bias", False, because="routers have no bias here"),
    ),
    irrelevant={
        "expert_capacity": "Megatron drops tokens by a factor of its own (moe.capacity_factor)",
        "router_jitter_noise": "noise in training",
        "dropout_rate": "noise in training",
        "router_dtype": "precision, not function; Megatron routes in float32",
        "router_ignore_padding_tokens": "padding takes no part in a language model's loss",
        "relative_attention_max_distance": "relative positions are not computed in Megatron",
        "initializer_factor": "first weights of a model that is trained from random ones",
        "add_router_probs": "what is returned beside the logits",
        "hidden_act": "dense_act_fn is the name here",
    },
    copies={r"(encoder|decoder)\.embed_tokens\.weight": "shared.weight"},
)

register_family(SWITCH_TRANSFORMERS)

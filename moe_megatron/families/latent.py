"""Latent attention (MLA) and multi-token prediction: rows that the DeepSeek families share."""

from typing import Any

from moe_megatron.families.family import Names
from moe_megatron.families.fields import only, same_as
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig, read_int
from moe_megatron.families.links import Link
from moe_megatron.families.rows import LAYER
from moe_megatron.families.settings import MTP_FIELD
from moe_megatron.families.table import Row, Scope, kept_links, one_to_one

_HF = LAYER + "self_attn."
_NORM = LAYER + "post_attention_layernorm.weight"


def _attention(key: str, name: str, *shape: str, **more: Any) -> Row:
    more["aliases"] = tuple(f"self_attention.{alias}" for alias in more.get("aliases", ()))
    return one_to_one(f"self_attention.{key}", _HF + name, *shape, **more)


LATENT_ATTENTION = (
    one_to_one("input_layernorm.weight", LAYER + "input_layernorm.weight", "hidden"),
    _attention(
        "linear_q_proj.weight", "q_proj.weight", "latent_q_rows", "hidden", when="full_rank_q"
    ),
    _attention("linear_q_down_proj.weight", "q_a_proj.weight", "q_lora", "hidden", when="q_lora"),
    _attention(
        "q_layernorm.weight",
        "q_a_layernorm.weight",
        "q_lora",
        aliases=("linear_q_up_proj.layer_norm_weight",),
        when="q_lora",
    ),
    _attention(
        "linear_q_up_proj.weight", "q_b_proj.weight", "latent_q_rows", "q_lora", when="q_lora"
    ),
    _attention(
        "linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight", "latent_kv_down_rows", "hidden"
    ),
    _attention(
        "kv_layernorm.weight",
        "kv_a_layernorm.weight",
        "kv_lora",
        aliases=("linear_kv_up_proj.layer_norm_weight",),
    ),
    _attention("linear_kv_up_proj.weight", "kv_b_proj.weight", "latent_kv_up_rows", "kv_lora"),
    _attention("linear_proj.weight", "o_proj.weight", "hidden", "latent_out"),
    one_to_one("pre_mlp_layernorm.weight", _NORM, "hidden", scope=Scope.MOE),
    one_to_one(
        "pre_mlp_layernorm.weight",
        _NORM,
        "hidden",
        scope=Scope.DENSE,
        aliases=("mlp.linear_fc1.layer_norm_weight",),
    ),
)
"""Latent attention and its norms; Transformer Engine fuses the low-rank norms with the matrix that
follows them, hence the aliases."""

MTP = (
    one_to_one("enorm.weight", LAYER + "enorm.weight", "hidden", scope=Scope.MTP),
    one_to_one("hnorm.weight", LAYER + "hnorm.weight", "hidden", scope=Scope.MTP),
    one_to_one("eh_proj.weight", LAYER + "eh_proj.weight", "hidden", "two_hidden", scope=Scope.MTP),
    one_to_one(
        "final_layernorm.weight", LAYER + "shared_head.norm.weight", "hidden", scope=Scope.MTP
    ),
)
"""Tensors of a multi-token prediction layer in addition to its transformer layer."""


def mtp_fields(config: HfConfig, names: Names) -> dict[str, Any]:
    """Set the number of multi-token prediction layers to 0 if the checkpoint holds none.

    Published checkpoints hold the layers that their configuration mentions; checkpoints that
    transformers wrote do not.
    """
    if names is None or not MTP_FIELD.value(config):
        return {}
    prefix = _mtp_prefix(config)
    if any(prefix in name or name.startswith("mtp.") for name in names):
        return {}
    return {MTP_FIELD.ours: 0}


def mtp_layout(config: HfConfig, names: Names) -> dict[str, Any]:
    """Whether the multi-token prediction layers hold copies of the embedding."""
    if names is None or not MTP_FIELD.value(config):
        return {}
    head = f"{_mtp_prefix(config)}shared_head.head"
    return {"mtp_copies": any(head in name for name in names)}


def _mtp_prefix(config: HfConfig) -> str:
    """Prefix of the tensor names of the first layer after the decoder."""
    return f"model.layers.{config['num_hidden_layers']}."


def mtp_copies(geometry: Geometry) -> list[Link]:
    """Copies of embedding and output projection that published checkpoints hold."""
    if not geometry.mtp_copies:
        return []
    shape = (geometry.vocab, geometry.hidden)
    layers = range(geometry.layers, geometry.layers + geometry.mtp_layers)
    kinds = ("embed_tokens.weight", "shared_head.head.weight")
    return kept_links(
        [(f"model.layers.{layer}.{kind}", shape) for layer in layers for kind in kinds]
    )


LATENT_CHECKED = (
    only("attention_bias", False, because="latent attention has no biases in Megatron"),
    only("mlp_bias", False, because="MLPs have no biases here"),
    only("moe_layer_freq", 1, because="all layers after the first dense ones have experts"),
    same_as(
        "num_key_value_heads",
        "num_attention_heads",
        because="latent attention has as many key/value heads as query heads",
    ),
)
"""Checked in families with latent attention and DeepSeek's experts."""

LATENT_IRRELEVANT = {
    "head_dim": "follows from qk_rope_head_dim",
    "qk_head_dim": "follows from qk_nope_head_dim and qk_rope_head_dim",
    "seq_aux": "how a loss in training is averaged",
    "ep_size": "processes among which the experts were spread",
}
"""Irrelevant there."""


def latent_limits(config: HfConfig, geometry: Geometry) -> list[str]:
    """What Megatron computes differently in latent attention."""
    if config.get("rope_interleave") is not False:
        return []
    return ["Megatron rotates adjacent pairs of features (rope_interleave true)."]


def group_limits(config: HfConfig, geometry: Geometry, *, summed: int = 2) -> list[str]:
    """What Megatron computes differently where experts are chosen from groups.

    Args:
        config: The configuration.
        geometry: Sizes of the model.
        summed: By how many of its experts this model ranks a group.
    """
    groups, chosen = (max(1, read_int(config, key, 1)) for key in ("n_group", "topk_group"))
    if groups <= chosen or geometry.top_k // chosen == summed:
        return []
    return [
        f"Megatron ranks groups by their best {geometry.top_k // chosen} experts, this model by "
        f"their best {summed}."
    ]

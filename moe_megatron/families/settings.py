"""Keys of a Hugging Face configuration and the fields of a run (mostly its model) they map to.

One table of fields is read in both directions: configuration to run, and run to configuration. This
module does not know any family.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from moe_megatron.config import RunConfig
from moe_megatron.config.fields import settings_of
from moe_megatron.config.run import SECTIONS
from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import HfConfig, read_float, read_int, read_list, shown

_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A key of a Hugging Face configuration and the field of a run it maps to."""

    hf: str
    """The key."""
    ours: str
    """Dotted name in `RunConfig`."""
    other_keys: tuple[str, ...] = ()
    """Other names of the key, in older or newer configurations."""
    default: Any = _ABSENT
    """Our value if the key is missing or null, or a function of the configuration that gives it."""
    read: Callable[[Any, HfConfig], Any] = lambda value, _: value
    """Converts the Hugging Face value to ours."""
    write: Callable[[Any, RunConfig], Any] = lambda value, _: value
    """Converts our value to the Hugging Face one."""

    def key(self, config: HfConfig) -> str:
        """The name of the key in this configuration."""
        return next((name for name in (self.hf, *self.other_keys) if name in config), self.hf)

    def value(self, config: HfConfig) -> Any:
        """The value of the run's field that a configuration gives.

        Raises:
            MappingError: The key is missing, or its value has the wrong type.
        """
        key = self.key(config)
        if config.get(key) is None and self.default is not _ABSENT:
            return self.default(config) if callable(self.default) else self.default
        found = read_int(config, key) if _is_integer(self.ours) else read_float(config, key)
        switch = config[key] if isinstance(config[key], bool) else None
        return self.read(found if switch is None else switch, config)


@functools.cache
def _is_integer(ours: str) -> bool:
    """Whether a field of a run is an integer or a bool."""
    section, *path = ours.split(".")
    for setting in settings_of(SECTIONS[section]):
        if setting.path == tuple(path):
            kinds = get_args(setting.annotation) or (setting.annotation,)
            return int in kinds or bool in kinds
    return ours in {"moe.router.expert_groups", "moe.router.group_top_k"}


def same_value(hf: str, ours: str, default: Any = _ABSENT, other_key: str = "") -> Field:
    """A field with the same value on both sides.

    Args:
        hf: The key in `config.json`.
        ours: Dotted name in `RunConfig`.
        default: Our value if the key is missing.
        other_key: Another name of the key.
    """
    other_keys = (other_key,) if other_key else ()
    return Field(hf=hf, ours=ours, other_keys=other_keys, default=default)


def null_if_neutral(hf: str, ours: str, neutral: float) -> Field:
    """A number that has a neutral value (1 for a factor, 0 for noise) where ours is null."""
    return Field(
        hf=hf,
        ours=ours,
        default=None,
        read=lambda value, _: None if value == neutral else value,
        write=lambda value, _: neutral if value is None else value,
    )


def negated(hf: str, ours: str, default: bool) -> Field:
    """A switch with opposite values on the two sides.

    Args:
        hf: The key in `config.json`.
        ours: Dotted name in `RunConfig`.
        default: Our value if the key is missing.
    """
    return Field(
        hf=hf, ours=ours, default=default, read=lambda v, _: not v, write=lambda v, _: not v
    )


def _head_dim(config: HfConfig) -> int:
    return read_int(config, "hidden_size") // max(1, read_int(config, "num_attention_heads"))


MODEL_FIELDS = (
    same_value("num_hidden_layers", "model.num_layers"),
    same_value("hidden_size", "model.hidden_size"),
    same_value("num_attention_heads", "model.num_attention_heads"),
    same_value("vocab_size", "data.vocab_size"),
    same_value("max_position_embeddings", "model.max_position_embeddings"),
    same_value("rms_norm_eps", "model.norm_epsilon", 1e-6),
    same_value("initializer_range", "model.init_std", 0.02),
    same_value("attention_dropout", "model.attention_dropout", 0.0),
    same_value("tie_word_embeddings", "model.tie_embeddings", False),
    same_value("intermediate_size", "model.ffn_hidden_size"),
)
"""Fields of every decoder-only model."""

HEAD_FIELDS = (
    same_value(
        "num_key_value_heads",
        "model.num_query_groups",
        lambda config: read_int(config, "num_attention_heads"),
    ),
    same_value("head_dim", "model.head_dim", _head_dim),
)
"""Heads of plain attention."""

ATTENTION_BIASES = (
    same_value("attention_bias", "model.qkv_bias", False),
    same_value("attention_bias", "model.attention_output_bias", False),
)
"""Biases of all four projections of the attention."""


def moe_fields(experts: str, width: str, coefficient: float | None = 0.001) -> tuple[Field, ...]:
    """Fields of the experts, under a family's own names.

    Args:
        experts: Key of the number of experts.
        width: Key of the inner width of one expert.
        coefficient: Weight of the balancing loss if the configuration has none; None: the family
            has no such key.
    """
    fields = (
        same_value(experts, "moe.num_experts", other_key="num_local_experts"),
        same_value("num_experts_per_tok", "moe.top_k", 2),
        same_value(width, "moe.expert_hidden_size"),
    )
    if coefficient is None:
        return fields
    return (*fields, same_value("router_aux_loss_coef", "moe.aux_loss_coef", coefficient))


def _shared_width(count: float, config: HfConfig) -> int | None:
    return int(count) * read_int(config, "moe_intermediate_size") or None


SHARED_EXPERTS = Field(
    hf="n_shared_experts",
    ours="moe.shared_expert_hidden_size",
    default=None,
    read=_shared_width,
    write=lambda width, run: (width or 0) // run.expert_hidden_size,
)
"""Number of shared experts, each as wide as one routed expert; ours is their total width."""

GROUP_FIELDS = (
    Field(hf="n_group", ours="moe.router.expert_groups", default=1, write=lambda v, _: v or 1),
    Field(hf="topk_group", ours="moe.router.group_top_k", default=1, write=lambda v, _: v or 1),
    null_if_neutral("routed_scaling_factor", "moe.router.scaling", 1.0),
)
"""Expert groups and the factor on the combine weights, under DeepSeek's names."""

_LATENT_EPSILON = 1e-6
"""That of the norms of latents in transformers, whatever `rms_norm_eps` says."""

LATENT_FIELDS = (
    same_value("q_lora_rank", "model.latent_attention.q_lora_rank", None),
    same_value("kv_lora_rank", "model.latent_attention.kv_lora_rank"),
    same_value("qk_nope_head_dim", "model.latent_attention.qk_head_dim"),
    same_value("qk_rope_head_dim", "model.latent_attention.qk_pos_emb_head_dim"),
    same_value("v_head_dim", "model.latent_attention.v_head_dim"),
    same_value("v_head_dim", "model.head_dim"),
    Field(
        hf="rms_norm_eps",
        ours="model.latent_attention.norm_epsilon",
        default=None,
        read=lambda epsilon, _: None if epsilon == _LATENT_EPSILON else _LATENT_EPSILON,
        write=lambda _, run: run.model.norm_epsilon,
    ),
)
"""Ranks and widths of latent attention (MLA)."""

MTP_FIELD = same_value(
    "num_nextn_predict_layers", "model.num_prediction_layers", 0, "num_mtp_layers"
)
"""Number of multi-token prediction layers."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """How a family's configuration says which layers are MoE layers."""

    read: Callable[[HfConfig, int], tuple[bool, ...]]
    """From a configuration and the number of layers: for each layer, whether it is a MoE layer."""
    write: Callable[[tuple[bool, ...]], dict[str, Any] | None]
    """The keys that express such a pattern; None if the family cannot."""
    keys: tuple[str, ...] = ()
    """Keys of the configuration that `read` reads."""


def _uniform(moe: bool) -> Pattern:
    return Pattern(
        lambda _, layers: (moe,) * layers,
        lambda layers: {} if set(layers) == {moe} else None,
    )


EVERY_LAYER = _uniform(True)
NO_LAYER = _uniform(False)


def _sparse_step(config: HfConfig, layers: int) -> tuple[bool, ...]:
    step, listed = read_int(config, "decoder_sparse_step", 1), read_list(config, "mlp_only_layers")
    if strange := [layer for layer in listed if type(layer) is not int]:
        raise MappingError(
            f"config.json gives {shown(strange[0])} in mlp_only_layers; numbers of layers, counted "
            "from 0, are needed."
        )
    dense = set(listed)
    return tuple(layer not in dense and (layer + 1) % max(1, step) == 0 for layer in range(layers))


SPARSE_STEP = Pattern(
    _sparse_step,
    lambda layers: {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, moe in enumerate(layers) if not moe],
    },
    keys=("decoder_sparse_step", "mlp_only_layers"),
)
"""Qwen: every n-th layer, except those in a list."""


def _first_dense(config: HfConfig, layers: int) -> tuple[bool, ...]:
    first = read_int(config, "first_k_dense_replace", 0)
    return tuple(layer >= first for layer in range(layers))


def _write_first_dense(layers: tuple[bool, ...]) -> dict[str, Any] | None:
    first = layers.index(True)
    return {"first_k_dense_replace": first} if all(layers[first:]) else None


FIRST_DENSE = Pattern(_first_dense, _write_first_dense, keys=("first_k_dense_replace",))
"""DeepSeek: k dense layers, then MoE layers."""


def _listed_or_first_dense(config: HfConfig, layers: int) -> tuple[bool, ...]:
    kinds, otherwise = read_list(config, "mlp_layer_types"), _first_dense(config, layers)
    listed = tuple(layer < len(kinds) and kinds[layer] == "sparse" for layer in range(layers))
    return listed if kinds else otherwise


def _write_kinds(layers: tuple[bool, ...]) -> dict[str, Any]:
    return {"mlp_layer_types": ["sparse" if moe else "dense" for moe in layers]}


LISTED_OR_FIRST_DENSE = Pattern(
    _listed_or_first_dense,
    _write_kinds,
    keys=("mlp_layer_types", "first_k_dense_replace"),
)
"""A list of dense and sparse layers; without it as `FIRST_DENSE`."""


TOP_K_ROUTER: dict[str, Any] = {
    "moe.router.name": "top_k",
    "moe.router.score_function": "softmax",
    "moe.router.pre_softmax": False,
    "moe.router.expert_groups": None,
    "moe.router.group_top_k": None,
    "moe.router.scaling": None,
}
"""The router of a family that does not specify another; a test compares it with `routing.top_k`."""


def run_value(run: RunConfig, name: str) -> Any:
    """The value of a field by its dotted name; a null is resolved to the value it stands for."""
    if name == "model.max_position_embeddings":
        return run.max_position_embeddings
    return run.architecture.value(name)


def set_nested(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested sections of fields."""
    *path, key = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[key] = value

"""Fields of a Hugging Face configuration: what they say of a run's, and above all of its model.

One table of fields is read both ways: configuration to run, and run back to configuration. This
module does not know any family.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from moe_megatron.config import RunConfig
from moe_megatron.config.fields import settings_of
from moe_megatron.config.run import SECTIONS
from moe_megatron.families.hf_config import HfConfig, listed, real, whole

Default = Callable[[HfConfig], Any]
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a Hugging Face configuration."""

    hf: str
    ours: str
    """Dotted name in `RunConfig`."""
    also: tuple[str, ...] = ()
    """Other names of the key, in configurations of another age."""
    default: Any = _ABSENT
    """Where the key is missing or null: a value, or a function of the configuration."""
    read: Callable[[Any, HfConfig], Any] = lambda value, _: value
    """From the value there to ours."""
    write: Callable[[Any, RunConfig], Any] = lambda value, _: value
    """And back."""

    def key(self, config: HfConfig) -> str:
        """The name that a configuration has for it."""
        return next((name for name in (self.hf, *self.also) if name in config), self.hf)

    def value(self, config: HfConfig) -> Any:
        """What a configuration says, in our terms.

        Raises:
            MappingError: The key is missing, or its value has the wrong type.
        """
        key = self.key(config)
        if config.get(key) is None and self.default is not _ABSENT:
            return self.default(config) if callable(self.default) else self.default
        found = whole(config, key) if _counts(self.ours) else real(config, key)
        switch = config[key] if isinstance(config[key], bool) else None
        return self.read(found if switch is None else switch, config)


@functools.cache
def _counts(ours: str) -> bool:
    """Whether a field of a run is a whole number."""
    section, *path = ours.split(".")
    for setting in settings_of(SECTIONS[section]):
        if setting.path == tuple(path):
            kinds = get_args(setting.annotation) or (setting.annotation,)
            return int in kinds or bool in kinds
    return ours in {"moe.router.expert_groups", "moe.router.group_top_k"}


def number(hf: str, ours: str, default: Any = _ABSENT, also: str = "") -> Field:
    """A field that is the same value on both sides.

    Args:
        hf: Name there.
        ours: Dotted name in `RunConfig`.
        default: Ours where the key is missing.
        also: Another name there.
    """
    return Field(hf=hf, ours=ours, also=(also,) if also else (), default=default)


def factor(hf: str, ours: str, neutral: float) -> Field:
    """A number that is null with us where it is neutral there."""
    return Field(
        hf=hf,
        ours=ours,
        default=None,
        read=lambda value, _: None if value == neutral else value,
        write=lambda value, _: neutral if value is None else value,
    )


def negated(hf: str, ours: str, default: bool) -> Field:
    """A switch that is ours the other way round.

    Args:
        hf: Name there.
        ours: Dotted name in `RunConfig`.
        default: Value of ours where the key is missing.
    """
    return Field(
        hf=hf, ours=ours, default=default, read=lambda v, _: not v, write=lambda v, _: not v
    )


def _head_dim(config: HfConfig) -> int:
    return whole(config, "hidden_size") // max(1, whole(config, "num_attention_heads"))


MODEL_FIELDS = (
    number("num_hidden_layers", "model.num_layers"),
    number("hidden_size", "model.hidden_size"),
    number("num_attention_heads", "model.num_attention_heads"),
    number("vocab_size", "data.vocab_size"),
    number("max_position_embeddings", "model.max_position_embeddings"),
    number("rms_norm_eps", "model.norm_epsilon", 1e-6),
    number("initializer_range", "model.init_std", 0.02),
    number("attention_dropout", "model.attention_dropout", 0.0),
    number("tie_word_embeddings", "model.tie_embeddings", False),
    number("intermediate_size", "model.ffn_hidden_size"),
)
"""What every decoder-only model has."""

HEAD_FIELDS = (
    number(
        "num_key_value_heads",
        "model.num_query_groups",
        lambda config: whole(config, "num_attention_heads"),
    ),
    number("head_dim", "model.head_dim", _head_dim),
)
"""Heads of plain attention."""

ATTENTION_BIASES = (
    number("attention_bias", "model.qkv_bias", False),
    number("attention_bias", "model.attention_output_bias", False),
)
"""Biases of all four projections of the attention."""


def moe_fields(experts: str, width: str, coefficient: float | None = 0.001) -> tuple[Field, ...]:
    """Experts under the names that a family gives them.

    Args:
        experts: Name of the number of experts.
        width: Name of the inner width of one expert.
        coefficient: Weight of the balancing loss where the configuration has none; None: the family
            has no such key.
    """
    fields = (
        number(experts, "moe.num_experts", also="num_local_experts"),
        number("num_experts_per_tok", "moe.top_k", 2),
        number(width, "moe.expert_hidden_size"),
    )
    if coefficient is None:
        return fields
    return (*fields, number("router_aux_loss_coef", "moe.aux_loss_coef", coefficient))


def _shared_width(count: float, config: HfConfig) -> int | None:
    return int(count) * whole(config, "moe_intermediate_size") or None


SHARED_EXPERTS = Field(
    hf="n_shared_experts",
    ours="moe.shared_expert_hidden_size",
    default=None,
    read=_shared_width,
    write=lambda width, run: (width or 0) // run.expert_hidden_size,
)
"""Shared experts counted in widths of one expert."""

GROUP_FIELDS = (
    Field(hf="n_group", ours="moe.router.expert_groups", default=1, write=lambda v, _: v or 1),
    Field(hf="topk_group", ours="moe.router.group_top_k", default=1, write=lambda v, _: v or 1),
    factor("routed_scaling_factor", "moe.router.scaling", 1.0),
)
"""Groups of experts and the factor of the weights, as DeepSeek names them."""

LATENT_FIELDS = (
    number("q_lora_rank", "model.latent_attention.q_lora_rank", None),
    number("kv_lora_rank", "model.latent_attention.kv_lora_rank"),
    number("qk_nope_head_dim", "model.latent_attention.qk_head_dim"),
    number("qk_rope_head_dim", "model.latent_attention.qk_pos_emb_head_dim"),
    number("v_head_dim", "model.latent_attention.v_head_dim"),
    number("v_head_dim", "model.head_dim"),
)
"""Ranks and widths of latent attention (MLA)."""

MTP_FIELD = number("num_nextn_predict_layers", "model.num_prediction_layers", 0, "num_mtp_layers")
"""Layers of multi-token prediction."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which layers are MoE layers, as a family writes it."""

    read: Callable[[HfConfig, int], tuple[bool, ...]]
    write: Callable[[tuple[bool, ...]], dict[str, Any] | None]
    """None: the family cannot say it."""


def _uniform(moe: bool) -> Pattern:
    return Pattern(
        lambda _, layers: (moe,) * layers,
        lambda layers: {} if set(layers) == {moe} else None,
    )


EVERY_LAYER = _uniform(True)
NO_LAYER = _uniform(False)


def _sparse_step(config: HfConfig, layers: int) -> tuple[bool, ...]:
    step, dense = whole(config, "decoder_sparse_step", 1), listed(config, "mlp_only_layers")
    return tuple(layer not in dense and (layer + 1) % max(1, step) == 0 for layer in range(layers))


SPARSE_STEP = Pattern(
    _sparse_step,
    lambda layers: {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, moe in enumerate(layers) if not moe],
    },
)
"""Qwen: every so many layers, but for those in a list."""


def _first_dense(config: HfConfig, layers: int) -> tuple[bool, ...]:
    first = whole(config, "first_k_dense_replace", 0)
    return tuple(layer >= first for layer in range(layers))


def _write_first_dense(layers: tuple[bool, ...]) -> dict[str, Any] | None:
    first = layers.index(True)
    return {"first_k_dense_replace": first} if all(layers[first:]) else None


FIRST_DENSE = Pattern(_first_dense, _write_first_dense)
"""DeepSeek: so many dense layers, then MoE layers."""


TOP_K_ROUTER: dict[str, Any] = {
    "moe.router.name": "top_k",
    "moe.router.score_function": "softmax",
    "moe.router.pre_softmax": False,
    "moe.router.expert_groups": None,
    "moe.router.group_top_k": None,
    "moe.router.scaling": None,
}
"""The router of a family that says nothing else; a test holds these to `routing.top_k`."""


def of_run(run: RunConfig, name: str) -> Any:
    """The value of a dotted name, with what null stands for filled in."""
    if name == "model.max_position_embeddings":
        return run.max_position_embeddings
    return run.architecture.value(name)


def set_nested(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested sections of fields."""
    *path, key = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[key] = value

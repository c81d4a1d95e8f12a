"""Fields of a Hugging Face configuration: what they say of the geometry and of a `RunConfig`.

One table of fields is read three ways: configuration to geometry, configuration to run, and run
back to configuration. This module does not know any family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.families.hf_config import HfConfig, listed, real, whole

Default = Callable[[HfConfig], Any]
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a Hugging Face configuration."""

    hf: str
    also: tuple[str, ...] = ()
    """Other names of the key, in configurations of another age."""
    size: str = ""
    """Name in `Geometry`; empty: shapes do not depend on it."""
    ours: str = ""
    """Dotted name in `RunConfig`, or "megatron.<flag>"; empty: a run does not know it."""
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
        found = whole(config, key) if self.size else real(config, key)
        switch = config[key] if isinstance(config[key], bool) else None
        return self.read(found if switch is None else switch, config)


def number(
    hf: str, size: str = "", ours: str = "", default: Any = _ABSENT, also: str = ""
) -> Field:
    """A field that is the same number on both sides."""
    names = (also,) if also else ()
    return Field(hf=hf, also=names, size=size, ours=ours, default=default)


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
    number("num_hidden_layers", "layers", "model.num_layers"),
    number("hidden_size", "hidden", "model.hidden_size"),
    number("num_attention_heads", "heads", "model.num_attention_heads"),
    number("vocab_size", "vocab", "data.vocab_size"),
    number("max_position_embeddings", "", "model.max_position_embeddings"),
    number("rms_norm_eps", "", "model.norm_epsilon", 1e-6),
    number("initializer_range", "", "model.init_std", 0.02),
    number("attention_dropout", "", "model.attention_dropout", 0.0),
    number("tie_word_embeddings", "tied", "model.tie_embeddings", False),
    number("intermediate_size", "ffn", "model.ffn_hidden_size"),
)
"""What every decoder-only model has."""

HEAD_FIELDS = (
    number(
        "num_key_value_heads",
        "groups",
        "model.num_query_groups",
        lambda config: whole(config, "num_attention_heads"),
    ),
    number("head_dim", "head_dim", "model.head_dim", _head_dim),
)
"""Heads of plain attention."""

ATTENTION_BIASES = (
    number("attention_bias", "qkv_bias", "megatron.add-qkv-bias", False),
    number("attention_bias", "proj_bias", "model.attention_output_bias", False),
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
        number(experts, "experts", "moe.num_experts", also="num_local_experts"),
        number("num_experts_per_tok", "top_k", "moe.top_k", 2),
        number(width, "expert_width", "moe.expert_hidden_size"),
    )
    if coefficient is None:
        return fields
    return (*fields, number("router_aux_loss_coef", "", "moe.aux_loss_coef", coefficient))


def _shared_width(count: float, config: HfConfig) -> int:
    return int(count) * whole(config, "moe_intermediate_size")


SHARED_EXPERTS = Field(
    hf="n_shared_experts",
    size="shared_width",
    ours="moe.shared_expert_hidden_size",
    default=0,
    read=_shared_width,
    write=lambda width, run: width // run.expert_hidden_size,
)
"""Shared experts counted in widths of one expert."""

GROUP_FIELDS = (
    Field(hf="n_group", ours="moe.num_groups", default=1, write=lambda v, _: v or 1),
    Field(hf="topk_group", ours="moe.group_top_k", default=1, write=lambda v, _: v or 1),
    number("routed_scaling_factor", "", "moe.top_k_scaling", 1.0),
)
"""Groups of experts and the factor of the weights, as DeepSeek names them."""

LATENT_FIELDS = (
    number("q_lora_rank", "q_lora", "megatron.q-lora-rank", 0),
    number("kv_lora_rank", "kv_lora", "megatron.kv-lora-rank"),
    number("qk_nope_head_dim", "nope_dim", "megatron.qk-head-dim"),
    number("qk_rope_head_dim", "rope_dim", "megatron.qk-pos-emb-head-dim"),
    number("v_head_dim", "v_dim", "megatron.v-head-dim"),
    number("v_head_dim", "", "model.head_dim"),
)
"""Ranks and widths of latent attention (MLA)."""

MTP_FIELD = number(
    "num_nextn_predict_layers", "mtp_layers", "megatron.mtp-num-layers", 0, "num_mtp_layers"
)
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


RESOLVED: dict[str, Callable[[RunConfig], Any]] = {
    "model.num_query_groups": lambda run: run.model.key_value_heads,
    "model.head_dim": lambda run: run.model.attention_head_dim,
    "model.ffn_hidden_size": lambda run: run.model.dense_ffn_size,
    "model.max_position_embeddings": lambda run: run.max_position_embeddings,
    "model.attention_multiplier": lambda run: run.model.softmax_scale,
    "moe.expert_hidden_size": lambda run: run.expert_hidden_size,
    "moe.shared_expert_hidden_size": lambda run: run.moe.shared_expert_hidden_size or 0,
    "moe.input_jitter": lambda run: run.moe.input_jitter or 0.0,
    "moe.top_k_scaling": lambda run: run.moe.top_k_scaling or 1.0,
}
"""Fields of a run that stand for another value where they are null."""


def of_run(run: RunConfig, name: str) -> Any:
    """The value of a dotted name, with what null stands for filled in."""
    if name in RESOLVED:
        return RESOLVED[name](run)
    section, _, key = name.partition(".")
    if section == "megatron":
        return run.megatron.get(key, 0)
    return getattr(getattr(run, section), key)


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in sections of fields."""
    section, _, key = name.partition(".")
    values.setdefault(section, {})[key] = value

"""The shape of the transformer around the experts: layers, attention, norms, embeddings.

It does not know the experts (`moe`), the vocabulary (`data`) or how the model is split over
processes (`parallel`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import NOT_OURS, Flag, Values, int_or_text, setting, switch
from moe_megatron.config.model_parts import LatentAttention, RopeScaling, SlidingWindow
from moe_megatron.errors import ConfigError

PositionEmbedding = Literal["rope", "learned_absolute", "none"]
Norm = Literal["RMSNorm", "LayerNorm"]
QKNormScope = Literal["head", "all_heads"]
Activation = Literal["swiglu", "quick_geglu", "gelu", "squared_relu"]

GATED = frozenset({"swiglu", "quick_geglu"})
"""Activations with a gate: such an MLP has three matrices."""


def _unless(neutral: float) -> Callable[[Any], Values | None]:
    """Leaves a flag out where the value is neutral."""
    return lambda value: None if value == neutral else (str(value),)


_ACTIVATIONS = (
    switch("swiglu", on="swiglu"),
    switch("quick-geglu", on="quick_geglu"),
    switch("squared-relu", on="squared_relu"),
)
"""With none of these flags, Megatron's activation is gelu."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer that the expert layers are part of. Widths are in features.

    Raises:
        ConfigError: If a value is out of range, or widths and heads do not divide.
    """

    num_layers: int = setting(4, changes="tensors", flag="num-layers")
    """Transformer layers, dense and MoE together."""

    hidden_size: int = setting(256, changes="tensors", flag="hidden-size")
    """Width of the residual stream."""

    num_attention_heads: int = setting(8, changes="tensors", flag="num-attention-heads")
    """Query heads in each attention layer."""

    num_query_groups: int | None = setting(None, changes="tensors", flag="num-query-groups")
    """Key/value heads (grouped-query attention); null: as many as query heads."""

    head_dim: int | None = setting(None, changes="tensors", flag="kv-channels")
    """Width of one attention head; null: hidden_size / num_attention_heads."""

    ffn_hidden_size: int | None = setting(None, changes="tensors", flag="ffn-hidden-size")
    """Inner width of a dense MLP; null: 4 x hidden_size, or 8/3 of it with swiglu (see
    `dense_ffn_size`)."""

    max_position_embeddings: int | None = setting(
        None, changes="function", flag="max-position-embeddings", adjustable=True
    )
    """Longest sequence the model can read, in tokens; null: data.sequence_length."""

    position_embedding: PositionEmbedding = setting("rope", changes="tensors")
    """How the model encodes positions: rotary, a learned table, or not at all."""

    rotary_base: int = setting(10000, changes="function", flag="rotary-base")
    """Base of the rotary frequencies; larger for longer sequences."""

    rotary_fraction: float = setting(
        1.0, changes="function", flag=Flag(name="rotary-percent", write=_unless(1.0))
    )
    """Fraction of each head's features that are rotated (GLM-4.5: 0.5)."""

    rotary_interleaved: bool = setting(False, changes="function", flag="rotary-interleaved")
    """Rotate neighbouring features together (ERNIE), instead of one of each half of the head."""

    rope_scaling: RopeScaling | None = setting(None, changes="function", adjustable=True)
    """How rotary positions are stretched to longer sequences; null: not at all."""

    norm: Norm = setting("RMSNorm", changes="tensors", flag="normalization")
    """Normalization before attention, before the MLP and at the end."""

    norm_epsilon: float = setting(1e-5, changes="function", flag="norm-epsilon")
    """Added to the variance inside the norms."""

    qk_norm: bool = setting(False, changes="tensors", flag="qk-layernorm")
    """Normalize queries and keys before attention."""

    qk_norm_scope: QKNormScope = setting("head", changes="tensors")
    """What the query and key norms span: each head by itself, or all heads together (OLMoE)."""

    qk_norm_after_rotation: bool = setting(False, changes="function")
    """Normalize queries and keys after they were rotated (HunYuan), instead of before."""

    activation: Activation = setting("swiglu", changes="tensors", flag=_ACTIVATIONS)
    """Activation of dense MLPs and of experts. swiglu and quick_geglu (GPT-OSS) have a gate, which
    adds a third matrix."""

    activation_clamp: float | None = setting(
        None, changes="function", flag="activation-func-clamp-value"
    )
    """Limit at which the inputs of a gated activation are clamped; null: none (GPT-OSS: 7)."""

    glu_offset: float = setting(
        0.0, changes="function", flag=Flag(name="glu-linear-offset", write=_unless(0.0))
    )
    """Added to the linear half of a gated activation (GPT-OSS: 1)."""

    add_bias: bool = setting(
        False, changes="tensors", flag=switch("disable-bias-linear", on=False, off=True)
    )
    """Give the linear layers a bias."""

    qkv_bias: bool = setting(False, changes="tensors", flag="add-qkv-bias")
    """Give queries, keys and values a bias, independently of add_bias (Qwen2)."""

    attention_output_bias: bool = setting(False, changes="tensors")
    """Give the attention's output projection a bias, independently of add_bias."""

    lm_head_bias: bool = setting(False, changes="tensors")
    """Give the model's output projection (LM head) a bias (PhiMoE)."""

    embedding_multiplier: float = setting(1.0, changes="function")
    """Multiplies the embeddings. This and the next three: Granite, after muP (arXiv:2203.03466)."""

    attention_multiplier: float | None = setting(None, changes="function")
    """Multiplies queries times keys before the softmax; null: 1 / sqrt(head width)."""

    residual_multiplier: float = setting(1.0, changes="function")
    """Multiplies the outputs of attention and MLP before they are added to the residual stream."""

    logits_divisor: float = setting(1.0, changes="function")
    """Divides the logits."""

    attention_sinks: bool = setting(
        False,
        changes="tensors",
        flag=Flag(
            name="softmax-type",
            write=lambda sinks: ("learnable",) if sinks else None,
            read=lambda values: {"learnable": True, "vanilla": False}.get(values[0], NOT_OURS),
        ),
    )
    """Give each head a learned extra logit in the softmax, which draws attention away from all
    tokens (GPT-OSS)."""

    sliding_window: SlidingWindow | None = setting(None, changes="function", adjustable=True)
    """Limits how far attention looks back; null: no limit."""

    latent_attention: LatentAttention | None = setting(
        None,
        changes="tensors",
        flag=Flag(
            name="multi-latent-attention",
            write=lambda latent: None if latent is None else (),
            read=lambda _: {},
            takes_value=False,
        ),
    )
    """Low-rank attention (MLA) in place of full keys and values; null: plain attention."""

    num_prediction_layers: int = setting(
        0,
        changes="tensors",
        flag=Flag(name="mtp-num-layers", write=_unless(0), read=int_or_text),
        adjustable=True,
    )
    """Multi-token prediction layers after the last layer, of its kind (DeepSeek-V3,
    arXiv:2412.19437)."""

    tie_embeddings: bool = setting(
        True,
        changes="tensors",
        flag=switch("untie-embeddings-and-output-weights", on=False, off=True),
    )
    """Share one matrix between input embedding and output projection."""

    init_std: float = setting(0.02, changes="training", flag="init-method-std")
    """Standard deviation of the initial weights."""

    attention_dropout: float = setting(0.0, changes="training", flag="attention-dropout")
    """Probability of dropping an attention weight."""

    hidden_dropout: float = setting(0.0, changes="training", flag="hidden-dropout")
    """Probability of dropping a feature after attention and after the MLP."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(
            self,
            1,
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "head_dim",
            "ffn_hidden_size",
            "max_position_embeddings",
            "rotary_base",
        )
        checks.at_least(self, 0, "num_prediction_layers")
        checks.positive(
            self,
            "norm_epsilon",
            "init_std",
            "embedding_multiplier",
            "attention_multiplier",
            "residual_multiplier",
            "logits_divisor",
            "activation_clamp",
            "rotary_fraction",
        )
        checks.fraction(self, "attention_dropout", "hidden_dropout")
        self._check_heads()
        self._check_parts()

    def _check_parts(self) -> None:
        if self.rotary_fraction > 1:
            raise ConfigError(
                f"model.rotary_fraction must be at most 1, not {self.rotary_fraction}: it is a "
                "fraction of each head."
            )
        if self.rope_scaling is not None and self.position_embedding != "rope":
            raise ConfigError(
                f"model.rope_scaling needs rotary positions, but model.position_embedding is "
                f"'{self.position_embedding}'; set it to 'rope', or rope_scaling to null."
            )
        if self.latent_attention and self.rope_scaling and self.rope_scaling.kind != "yarn":
            raise ConfigError(
                f"model.rope_scaling.kind '{self.rope_scaling.kind}' does not work with "
                "model.latent_attention; set it to 'yarn', the only kind Megatron supports there."
            )
        if self.latent_attention and self.rotary_interleaved:
            raise ConfigError(
                "model.rotary_interleaved does not work with model.latent_attention, which always "
                "rotates neighbouring features; set it to false."
            )
        if self.qk_norm_after_rotation and self.qk_norm_scope != "head":
            raise ConfigError(
                "model.qk_norm_after_rotation needs model.qk_norm_scope 'head', not "
                f"'{self.qk_norm_scope}'; change one of them."
            )
        window = self.sliding_window
        if window is not None and window.layers and len(window.layers) != self.num_layers:
            raise ConfigError(
                f"model.sliding_window.layers has {len(window.layers)} entries for "
                f"model.num_layers ({self.num_layers}); give one 1 or 0 for each layer."
            )
        if self.activation not in GATED and (self.glu_offset or self.activation_clamp is not None):
            raise ConfigError(
                f"model.glu_offset and model.activation_clamp need an activation with a gate "
                f"({checks.join_words(sorted(GATED))}), not '{self.activation}'; leave them out."
            )

    def _check_heads(self) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ConfigError(
                f"model.hidden_size ({self.hidden_size}) must be a multiple of "
                f"model.num_attention_heads ({heads}); change one, or set model.head_dim."
            )
        if self.position_embedding == "rope" and self.attention_head_dim % 2:
            raise ConfigError(
                f"rope rotates pairs of features, so the head width ({self.attention_head_dim}) "
                "must be even; set model.head_dim, or change model.num_attention_heads."
            )
        if heads % self.key_value_heads:
            raise ConfigError(
                f"model.num_query_groups ({self.num_query_groups}) must divide "
                f"model.num_attention_heads ({heads}); "
                f"try {checks.join_words(checks.divisors(heads))}."
            )

    @property
    def is_gated(self) -> bool:
        """Whether MLPs have a gate, and therefore three matrices."""
        return self.activation in GATED

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head, in features."""
        if self.head_dim is not None:
            return self.head_dim
        return self.hidden_size // self.num_attention_heads

    @property
    def softmax_scale(self) -> float:
        """Factor on q k^T before the softmax: `attention_multiplier`, or 1 / sqrt(head width)."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return float(self.attention_head_dim**-0.5)

    @property
    def key_value_heads(self) -> int:
        """Key/value heads of each attention layer."""
        return self.num_attention_heads if self.num_query_groups is None else self.num_query_groups

    @property
    def dense_ffn_size(self) -> int:
        """Inner width of a dense MLP, in features.

        `ffn_hidden_size` if set. Otherwise 4 x hidden_size, or with swiglu 8/3 x hidden_size
        rounded down to a multiple of 64: three matrices of that width have about as many weights
        as two of the full width. As in Megatron, but at least 64 where Megatron would give 0.
        """
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        if self.activation == "swiglu":
            return max(64, 8 * self.hidden_size // 3 // 64 * 64)
        return 4 * self.hidden_size

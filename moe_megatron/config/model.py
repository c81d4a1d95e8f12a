"""The shape of the transformer around the experts: layers, attention, norms, embeddings.

It does not know the experts (`moe`), the vocabulary (`data`) or how the model is split over
processes (`parallel`).
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.convert import conform
from moe_megatron.errors import ConfigError

PositionEmbedding = Literal["rope", "yarn", "learned_absolute", "none"]
Norm = Literal["RMSNorm", "LayerNorm"]
QKNormScope = Literal["head", "all_heads"]
Activation = Literal["swiglu", "gelu", "squared_relu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer that the expert layers are part of. Widths are in features.

    Raises:
        ConfigError: If a value is out of range, or widths and heads do not divide.
    """

    num_layers: int = 4
    """Transformer layers, dense and MoE together."""

    hidden_size: int = 256
    """Width of the residual stream."""

    num_attention_heads: int = 8
    """Query heads in each attention layer."""

    num_query_groups: int | None = None
    """Key/value heads (grouped-query attention); null: as many as query heads."""

    head_dim: int | None = None
    """Width of one attention head; null: hidden_size / num_attention_heads."""

    ffn_hidden_size: int | None = None
    """Inner width of a dense MLP; null: 4 x hidden_size, or 8/3 of it with swiglu (see
    `dense_ffn_size`)."""

    max_position_embeddings: int | None = None
    """Longest sequence the model can read, in tokens; null: data.sequence_length."""

    position_embedding: PositionEmbedding = "rope"
    """How positions enter: rotary, rotary stretched by YaRN (its numbers are flags under
    `megatron`), a learned table, or not at all."""

    rotary_base: int = 10000
    """Base of the rotary frequencies; larger for longer sequences."""

    norm: Norm = "RMSNorm"
    """Normalization before attention, before the MLP and at the end."""

    norm_epsilon: float = 1e-5
    """Added to the variance inside the norms."""

    qk_norm: bool = False
    """Normalize queries and keys before attention."""

    qk_norm_scope: QKNormScope = "head"
    """What such a norm spans: each head by itself, or all heads at once (OLMoE)."""

    activation: Activation = "swiglu"
    """Activation of dense MLPs and of experts; swiglu has a gate, and so a third matrix."""

    add_bias: bool = False
    """Give the linear layers a bias."""

    attention_output_bias: bool = False
    """Give the attention's output projection a bias, whatever the other linear layers have."""

    lm_head_bias: bool = False
    """Give the output projection of the model a bias (PhiMoE)."""

    embedding_multiplier: float = 1.0
    """Multiplies the embeddings (this and the next three: Granite, after muP, arXiv:2203.03466)."""

    attention_multiplier: float | None = None
    """Multiplies queries times keys before the softmax; null: 1 / sqrt(head width)."""

    residual_multiplier: float = 1.0
    """Multiplies what attention and MLP add to the residual stream."""

    logits_divisor: float = 1.0
    """Divides the logits."""

    tie_embeddings: bool = True
    """Use one matrix as input embedding and as output projection."""

    init_std: float = 0.02
    """Standard deviation of the initial weights."""

    attention_dropout: float = 0.0
    """Probability of dropping an attention weight."""

    hidden_dropout: float = 0.0
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
        checks.positive(
            self,
            "norm_epsilon",
            "init_std",
            "embedding_multiplier",
            "attention_multiplier",
            "residual_multiplier",
            "logits_divisor",
        )
        checks.fraction(self, "attention_dropout", "hidden_dropout")
        self._check_heads()

    def _check_heads(self) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ConfigError(
                f"model.hidden_size ({self.hidden_size}) must be a multiple of "
                f"model.num_attention_heads ({heads}); change one, or set model.head_dim."
            )
        if self.position_embedding in {"rope", "yarn"} and self.attention_head_dim % 2:
            raise ConfigError(
                f"rope turns pairs of features, so the head width ({self.attention_head_dim}) must "
                "be even; set model.head_dim, or change model.num_attention_heads."
            )
        if heads % self.key_value_heads:
            raise ConfigError(
                f"model.num_query_groups ({self.num_query_groups}) must divide "
                f"model.num_attention_heads ({heads}); "
                f"try {checks.join_words(checks.divisors(heads))}."
            )

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head, in features."""
        if self.head_dim is not None:
            return self.head_dim
        return self.hidden_size // self.num_attention_heads

    @property
    def softmax_scale(self) -> float:
        """What queries times keys are multiplied by."""
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

        Without `ffn_hidden_size` this follows Megatron: 4 x hidden_size; with swiglu 2/3 of that,
        which keeps the number of weights although there are three matrices, rounded down to a
        multiple of 64 (and at least 64, where Megatron would come to 0).
        """
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        if self.activation == "swiglu":
            return max(64, 8 * self.hidden_size // 3 // 64 * 64)
        return 4 * self.hidden_size

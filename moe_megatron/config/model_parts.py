"""Parts that most models do not have, each a group of fields of `ModelConfig` that may be null.

They know neither the rest of the model nor each other; `ModelConfig` checks how they fit together.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import NOT_OURS, Flag, Values, int_or_text, setting, switch
from moe_megatron.config.layer_pattern import read_pattern, write_pattern
from moe_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention:
    """Low-rank attention (MLA, DeepSeek-V2, arXiv:2405.04434). Widths are in features.

    Raises:
        ConfigError: If a width is out of range.
    """

    SECTION: ClassVar[str] = "model.latent_attention"

    q_lora_rank: int | None = setting(None, changes="tensors", flag="q-lora-rank")
    """Rank of the queries; null: full rank."""

    kv_lora_rank: int = setting(512, changes="tensors", flag="kv-lora-rank")
    """Shared rank of keys and values."""

    qk_head_dim: int = setting(128, changes="tensors", flag="qk-head-dim")
    """Width of the part of a query or key head that is not rotated."""

    qk_pos_emb_head_dim: int = setting(64, changes="tensors", flag="qk-pos-emb-head-dim")
    """Width of the part of a query or key head that is rotated."""

    v_head_dim: int = setting(128, changes="tensors", flag="v-head-dim")
    """Width of a value head."""

    norm_epsilon: float | None = setting(None, changes="function")
    """Added to the variance inside the norms of the latents; null: model.norm_epsilon."""

    def __post_init__(self) -> None:
        conform(self)
        checks.positive(self, "norm_epsilon")
        checks.at_least(
            self,
            1,
            "q_lora_rank",
            "kv_lora_rank",
            "qk_head_dim",
            "qk_pos_emb_head_dim",
            "v_head_dim",
        )


def _is_yarn(model: Any) -> bool:
    return bool(model.rope_scaling.kind == "yarn")


def _is_plain_yarn(model: Any) -> bool:
    return _is_yarn(model) and model.latent_attention is None


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary positions are stretched to sequences longer than those of the training.

    Raises:
        ConfigError: If a number is out of range, or belongs to another kind of scaling.
    """

    SECTION: ClassVar[str] = "model.rope_scaling"

    kind: Literal["linear", "llama3", "yarn"] = setting(
        "linear",
        changes="function",
        flag=switch("use-rope-scaling", on="llama3", factor=8.0),
        adjustable=True,
    )
    """linear divides all positions by the factor; llama3 divides only low frequencies by it (Llama
    3.1); yarn blends by frequency and sharpens attention (YaRN, arXiv:2309.00071)."""

    factor: float = setting(
        1.0,
        changes="function",
        flag=(
            Flag(name="rotary-scaling-factor", when=_is_yarn, implies={"kind": "yarn"}),
            Flag(
                name="rope-scaling-factor",
                when=lambda model: model.rope_scaling.kind == "llama3",
                implies={"kind": "llama3"},
            ),
            Flag(
                name="rotary-seq-len-interpolation-factor",
                write=lambda factor: None if factor is None else (str(int(factor)),),
                read=int_or_text,
                when=lambda model: model.rope_scaling.kind == "linear",
                implies={"kind": "linear"},
            ),
        ),
        adjustable=True,
    )
    """Longest new sequence divided by the longest original one; a whole number with linear."""

    original_max_position_embeddings: int | None = setting(
        None,
        changes="function",
        flag=Flag(
            name="yarn-original-max-position-embeddings", read=int_or_text, when=_is_plain_yarn
        ),
        adjustable=True,
    )
    """Length of the original sequences, in tokens (yarn)."""

    beta_fast: float | None = setting(
        None,
        changes="function",
        flag=Flag(name="yarn-beta-fast", when=_is_plain_yarn),
        adjustable=True,
    )
    """Frequencies with more rotations than this over the original length stay unchanged (yarn)."""

    beta_slow: float | None = setting(
        None,
        changes="function",
        flag=Flag(name="yarn-beta-slow", when=_is_plain_yarn),
        adjustable=True,
    )
    """Frequencies with fewer rotations than this are divided by the whole factor (yarn)."""

    mscale: float | None = setting(
        None, changes="function", flag=Flag(name="mscale", when=_is_yarn), adjustable=True
    )
    """Weight of the factor in the scale of rotated features (yarn)."""

    mscale_all_dim: float | None = setting(
        None, changes="function", flag=Flag(name="mscale-all-dim", when=_is_yarn), adjustable=True
    )
    """Weight of the factor in the scale of attention (yarn)."""

    round_range: bool = setting(
        True,
        changes="function",
        flag=switch("no-yarn-correction-range-round-to-int", on=False, off=True),
        adjustable=True,
    )
    """Round the range of dimensions between the two betas to whole dimensions (yarn)."""

    def __post_init__(self) -> None:
        conform(self)
        checks.positive(self, "factor", "beta_fast", "beta_slow")
        checks.at_least(self, 1, "original_max_position_embeddings")
        if self.kind == "linear" and self.factor % 1:
            raise ConfigError(
                f"model.rope_scaling.factor ({self.factor}) must be a whole number with kind "
                "'linear'; Megatron supports no other."
            )


_WINDOW = re.compile(r"\s*(\d+)\s*,\s*0\s*")


def _read_window(values: Values) -> Any:
    """Read "before,after": Megatron counts tokens on both sides; a causal model has 0 after."""
    found = _WINDOW.fullmatch(values[0])
    return NOT_OURS if found is None else int(found[1])


def _read_layers(values: Values) -> Any:
    """Read a list; a number n (one layer in n sees all tokens) cannot be expressed here."""
    layers = read_pattern(values)
    return layers if isinstance(layers, tuple) else NOT_OURS


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindow:
    """Attention that looks back a limited number of tokens (Longformer, arXiv:2004.05150).

    Raises:
        ConfigError: If the size is below 1, or `layers` holds numbers other than 0 and 1.
    """

    SECTION: ClassVar[str] = "model.sliding_window"

    size: int = setting(
        4095,
        changes="function",
        flag=Flag(
            name="window-size",
            write=lambda size: None if size is None else (f"{size},0",),
            read=_read_window,
        ),
        adjustable=True,
    )
    """Number of preceding tokens that a token sees."""

    layers: tuple[int, ...] | None = setting(
        None,
        changes="function",
        flag=Flag(
            name="window-attn-skip-freq",
            write=lambda layers: None if layers is None else write_pattern(layers),
            read=_read_layers,
        ),
        adjustable=True,
    )
    """1 for each layer with the window, 0 for each without; null: every layer has it."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(self, 1, "size")
        if self.layers is not None and not set(self.layers) <= {0, 1}:
            raise ConfigError(
                "model.sliding_window.layers needs a 1 (window) or 0 (whole sequence) for each "
                f"layer, not {list(self.layers)}."
            )

"""Granite's four multipliers in Megatron's models (after muP, arXiv:2203.03466).

Megatron has three of them as part of its own muP, which changes neither initial weights nor
learning rates as long as the width is that of its base model. The residual multiplier is ours.
"""

from collections.abc import Callable
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from moe_megatron.config import ModelConfig

AddToResidual = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


def set_multipliers(transformer: TransformerConfig, model: ModelConfig) -> None:
    """Set the multipliers of embeddings, attention and logits in Megatron's configuration.

    Args:
        transformer: Megatron's configuration, changed in place.
        model: Our configuration.
    """
    if model.attention_multiplier is not None:
        transformer.softmax_scale = model.attention_multiplier
    if (model.embedding_multiplier, model.logits_divisor) != (1.0, 1.0):
        transformer.use_mup = True
        transformer.mup_embedding_mult = model.embedding_multiplier
        transformer.mup_output_mult = 1.0 / model.logits_divisor


def scaled_residual(multiplier: float) -> Callable[[bool, bool], AddToResidual]:
    """`get_bias_dropout_add` for residual + dropout(multiplier * (update + bias))."""

    def get_add(training: bool, fused: bool) -> AddToResidual:
        add: Any = get_bias_dropout_add(training, fused)

        def scaled_add(
            update_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float
        ) -> Tensor:
            update, bias = update_and_bias
            scaled = (update * multiplier, None if bias is None else bias * multiplier)
            return add(scaled, residual, dropout)  # type: ignore[no-any-return]

        return scaled_add

    return get_add

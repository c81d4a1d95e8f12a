"""LayerNorm and RMSNorm for the local (non Transformer Engine) layer spec.

Megatron's `WrappedTorchNorm` refuses sequence parallelism, which MoE with tensor parallelism
requires. This one marks its parameters so that Megatron sums their gradients over the tensor
parallel group, as it does for Transformer Engine's norms.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from moe_megatron.errors import ConfigError


class LocalNorm:
    """Builds `torch.nn.RMSNorm` or `LayerNorm`, with the call signature of Megatron's norms."""

    def __new__(  # type: ignore[misc]  # a builder, like the class it replaces
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> torch.nn.Module:
        """Build the norm.

        Args:
            config: Megatron's configuration; `normalization` and `sequence_parallel` are read.
            hidden_size: Width of the normalised axis.
            eps: Added to the variance.

        Raises:
            ConfigError: The normalization needs Transformer Engine.
        """
        if config.layernorm_zero_centered_gamma:
            raise ConfigError(
                "--apply-layernorm-1p needs Transformer Engine, which is not in use; leave it out."
            )
        kinds: dict[str, type[torch.nn.Module]] = {
            "RMSNorm": torch.nn.RMSNorm,
            "LayerNorm": torch.nn.LayerNorm,
        }
        if config.normalization not in kinds:
            raise ConfigError(
                f"normalization {config.normalization!r} is not available without Transformer "
                f"Engine; use {' or '.join(kinds)}."
            )
        norm = kinds[config.normalization](hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm

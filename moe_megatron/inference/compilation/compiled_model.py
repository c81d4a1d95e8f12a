"""What comes of a compiler, and whether it computes what the model does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_megatron.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRACED = (2, 8)
"""Rows and tokens of the example that compilers see."""
_OTHERS = ((1, 5), (3, 17))
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of logits, in their standard deviations: sums are made in another order."""


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """Logits of token ids, by a compiler's program; `generate` where it can decode."""

    backend: str
    logits: Callable[[Tensor], Tensor]
    """From token ids [B, T] to logits [B, T, V]."""
    decoder: "PreTrainedModel | None" = None
    """The model whose calls are compiled; None for a file, which has no keys and values."""
    path: Path | None = None
    """The file that was written."""
    difference: float = 0.0
    """From the logits of the model: the largest, in their standard deviations, when checked."""

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of token ids [B, T]."""
        return self.logits(input_ids)

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, max_new_tokens: int = 20, **more: Any) -> Tensor:
        """Go on with token ids [B, T]; further arguments are those of transformers' `generate`.

        Raises:
            ConfigError: The compiled file computes whole sequences only.
        """
        if self.decoder is None:
            raise ConfigError(
                f"a model that was compiled with {self.backend!r} computes the logits of whole "
                "sequences and keeps no keys and values to decode with; compile it with "
                "'inductor', or score with model(input_ids)."
            )
        words: Tensor = self.decoder.generate(input_ids, max_new_tokens=max_new_tokens, **more)
        return words


def example_ids(shape: tuple[int, int], vocab_size: int) -> Tensor:
    """Token ids of a shape, always the same."""
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def largest_difference(
    logits: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], vocab_size: int
) -> float:
    """How far logits are from those expected, in standard deviations of these.

    Shapes are other ones than the compiler's example.

    Raises:
        CheckpointError: Farther than another order of sums explains.
    """
    largest = 0.0
    for shape in _OTHERS:
        ids = example_ids(shape, vocab_size)
        wanted = expected(ids)
        apart = (logits(ids).float().cpu() - wanted.float().cpu()).abs().max()
        largest = max(largest, float(apart / wanted.float().std()))
    if not largest <= _TOLERANCE[wanted.dtype]:
        raise CheckpointError(
            f"the compiled model computes something else: its logits differ by {largest:.2g} "
            f"standard deviations, and {_TOLERANCE[wanted.dtype]:g} is what another order of sums "
            "explains; use the model as it is, and report the versions of torch and transformers."
        )
    return largest

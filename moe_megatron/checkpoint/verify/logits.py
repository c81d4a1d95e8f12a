"""Compares the logits that both sides compute for the same tokens, on the CPU, layer by layer.

The Hugging Face side is transformers' own model, the Megatron side Megatron's own. Each holds one
layer in memory at a time, so that models larger than memory can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_megatron.checkpoint.formats.box_reader import BoxReader
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.verify.hf_layers import layered_hf_model
from moe_megatron.config import RunConfig
from moe_megatron.families.links import Link

TOLERANCE = 1e-4
"""max |difference| <= TOLERANCE * max(1, spread): largest allowed difference of float32 logits.

The two sides round differently, and a deep model rounds more often than a shallow one."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsReport:
    """How much the logits of both sides differ."""

    precision: str
    """Precision of both computations: fp32, or bf16, in which rounding dominates the differences,
    so that they are not judged."""
    positions: int
    """Number of positions for which logits were compared."""
    max_difference: float
    mean_difference: float
    top1_agreement: float
    """Share of positions at which both sides have the same most probable token."""
    spread: float
    """Standard deviation of the logits, to which differences should be compared."""
    tolerance: float
    """Largest difference for which the logits count as equal."""

    @property
    def agree(self) -> bool:
        """max_difference <= tolerance."""
        return self.max_difference <= self.tolerance


def compare_logits(
    folder: HfFolder,
    links: Sequence[Link],
    saved: TorchDist,
    run: RunConfig,
    *,
    tokens: Tensor,
    precision: str = "fp32",
    tolerance: float = TOLERANCE,
) -> LogitsReport:
    """Run both sides on the same tokens.

    Args:
        folder: The Hugging Face side.
        links: All links of the model.
        saved: The Megatron side.
        run: Configuration of the Megatron side.
        tokens: int64 [sequences, length].
        precision: "fp32" or "bf16".
        tolerance: As `TOLERANCE`.

    Raises:
        BackendUnavailableError: One of the sides cannot be computed here.
        MoEError: Megatron refuses the model.
    """
    # Megatron is imported only here: structure and weights are compared without it.
    from moe_megatron.mcore.state.layered import layered_model

    with layered_hf_model(folder, links, dtype=_DTYPES[precision]) as model:
        theirs = model(tokens)
    with BoxReader(saved) as boxes, layered_model(run, boxes.read, precision=precision) as model:
        ours = model(tokens)
    return _report(ours, theirs, precision, tolerance)


def _report(ours: Tensor, theirs: Tensor, precision: str, tolerance: float) -> LogitsReport:
    """Compare logits, float32 [sequences, length, vocabulary]."""
    difference = (ours - theirs).abs()
    spread = float(theirs.std())
    return LogitsReport(
        precision=precision,
        positions=theirs.shape[0] * theirs.shape[1],
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        spread=spread,
        tolerance=tolerance * max(1.0, spread),
    )


def random_tokens(vocabulary: int, sequences: int, length: int, *, seed: int = 0) -> Tensor:
    """Random tokens, int64 [sequences, length]; the same arguments give the same tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (sequences, length), generator=generator)

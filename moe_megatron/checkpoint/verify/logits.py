"""Compares what both sides compute: the logits of the same tokens, on the CPU, layer by layer.

The Hugging Face side is transformers' own model, the Megatron side Megatron's own; each holds one
layer at a time, so that models larger than memory can be compared.
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
"""Largest difference of logits in float32, in units of their spread where that is above 1.

The roundings of both sides differ, and a deep model makes more of them than a shallow one."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsReport:
    """How far the logits of both sides are apart."""

    precision: str
    """In which both computed: fp32, or bf16, where different roundings decide and nothing is
    judged."""
    positions: int
    """Tokens whose next one was predicted."""
    max_difference: float
    mean_difference: float
    top1_agreement: float
    """Part of the positions at which both find the same token most likely."""
    spread: float
    """Standard deviation of the logits, against which differences are to be seen."""
    tolerance: float
    """Largest difference at which they count as equal."""

    @property
    def agree(self) -> bool:
        """Whether both sides compute the same."""
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
        links: All of the model.
        saved: The Megatron side.
        run: Its configuration.
        tokens: int64 [sequences, length].
        precision: "fp32" or "bf16".
        tolerance: As `TOLERANCE`.

    Raises:
        BackendUnavailableError: One of them cannot be computed here.
        MoEError: Megatron refuses the model.
    """
    # Megatron is imported here alone: structure and weights are compared without it.
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
    """Tokens to compare on, int64 [sequences, length]; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (sequences, length), generator=generator)

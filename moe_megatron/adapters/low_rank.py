"""The one form of an adapter between training, files and models: low-rank tensors by place.

The matrices are whole and in Megatron's orientation and order of rows, whatever layout trained
them. It knows neither models nor files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_megatron.errors import CheckpointError


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """W' = W + s B A (LoRA, arXiv:2106.09685): how one matrix W [out, in] is adapted.

    With a magnitude m it is W' = m (W + s B A) / |W + s B A|, the norm being that of each row
    (DoRA, arXiv:2402.09353).
    """

    a: Tensor
    """A [r, in]: what the input is reduced to."""
    b: Tensor
    """B [out, r]: what that adds to the output. Rows are Megatron's: queries, keys and values by
    group, the gate before the up projection."""
    scale: float
    """s, such as alpha / r."""
    magnitude: Tensor | None = None
    """m [out], the norm of each row of the adapted matrix; None: as it comes."""

    def __post_init__(self) -> None:
        shapes = [list(tensor.shape) for tensor in (self.a, self.b)]
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise CheckpointError(
                f"A {shapes[0]} and B {shapes[1]} are no adapter: A is [rank, inputs] and B "
                "[outputs, rank]."
            )
        if self.magnitude is not None and self.magnitude.shape != self.b.shape[:1]:
            raise CheckpointError(
                f"a magnitude {list(self.magnitude.shape)} does not fit B {shapes[1]}: there is "
                "one number for each output."
            )

    @property
    def rank(self) -> int:
        """Columns of B and rows of A."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs: the shape of the adapted matrix."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> Tensor:
        """The product s B A [out, in], computed in float32 at least."""
        wide = torch.promote_types(self.b.dtype, torch.float32)
        return self.scale * (self.b.to(wide) @ self.a.to(wide))

    def merged(self, weight: Tensor) -> Tensor:
        """W' of the formula above, in the type of the weight but computed in float32 at least.

        Args:
            weight: W [out, in], which stays as it is.
        """
        delta = self.delta()
        adapted = weight.to(delta.dtype) + delta.to(weight.device)
        if self.magnitude is not None:
            norm = adapted.norm(dim=1, keepdim=True)
            adapted = self.magnitude.to(adapted).unsqueeze(1) * adapted / norm
        return adapted.to(weight.dtype)


def check_finite(adapter: Mapping[str, LowRank], where: object) -> None:
    """Refuse an adapter that would spoil each model that it is used with.

    Args:
        adapter: The adapter.
        where: What holds it, for messages.

    Raises:
        CheckpointError: A number of it is NaN or infinite.
    """
    for place, it in adapter.items():
        tensors = (it.a, it.b) if it.magnitude is None else (it.a, it.b, it.magnitude)
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise CheckpointError(
                f"the adapter of {place} in {where} holds numbers that are not finite (NaN or "
                "infinity): its training has diverged, or the file is damaged. Take an earlier "
                "checkpoint, train again with a lower learning rate, or copy it again."
            )


Adapter = Mapping[str, LowRank]
"""By the place of each adapted matrix: the name of its weight in Megatron's model on one process,
`decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight`. Layers and experts count from 0;
what is not named is not adapted."""

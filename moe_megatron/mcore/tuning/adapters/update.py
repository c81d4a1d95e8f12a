"""What an adapter adds to a linear layer: s (x A^T) B^T, and the norms of DoRA, on split matrices.

B A is never formed. How partial sums become whole ones depends on who exchanges tokens:

    layer, split over rows      A whole, B split; h = x A^T is made known to all ranks, which
                                also sums what they find out about it in the backward pass
    layer, split over columns   A split, B whole; the partial sums of h are added up
    others around the layer     each rank has all tokens, and its outputs are partial sums where
                                columns are split; a whole tensor collects its gradient itself
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
)
from torch import Tensor
from torch.nn import functional

from moe_megatron.config.adapter import MAGNITUDE, A, B
from moe_megatron.mcore.tuning.adapters.adaptable import Matrix
from moe_megatron.mcore.tuning.adapters.adapter_tensors import AdapterTensors


class LowRankUpdate:
    """The adapter of one matrix, as a forward hook of its layer.

    Args:
        matrix: The matrix.
        tensors: Where A, B and the magnitude are; shared ones are elsewhere than the matrix's own.
        scale: The factor s.
        dropout: Probability of leaving an input of A out, in training.
    """

    def __init__(
        self, matrix: Matrix, tensors: Sequence[AdapterTensors], scale: float, dropout: float
    ) -> None:
        self.matrix = matrix
        self.tensors = tuple(tensors)
        self.scale = scale
        self.dropout = dropout

    @property
    def has_magnitude(self) -> bool:
        """Whether the norms of rows are trained."""
        return any(MAGNITUDE in it.layouts for it in self.tensors)

    @property
    def training(self) -> bool:
        """Whether this is training, and not evaluation."""
        return self.tensors[0].training

    @property
    def is_plain(self) -> bool:
        """Whether it only adds s (x A^T) B^T now, with the matrix on one rank."""
        drops = bool(self.dropout) and self.training
        return self.matrix.parts == 1 and not drops and not self.has_magnitude

    def __call__(self, layer: Any, arguments: tuple[Any, ...], outputs: Any) -> Any:
        """The outputs of the layer, adapted."""
        output, bias = outputs
        return self.adapted(_inputs_of(layer, arguments[0]), output), bias

    def adapted(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Outputs of the adapted matrix, without a bias.

        Args:
            inputs: x [..., inputs], this rank's part.
            output: x W^T [..., outputs], as the layer gives it.
        """
        tensors = self.current()
        update = self.scale * self._update(self._dropped(inputs), tensors[A], tensors[B])
        if MAGNITUDE not in tensors:
            return output + update
        ratio = tensors[MAGNITUDE].float() / self.norms(tensors[A], tensors[B])
        return ((output + update) * ratio).to(output.dtype)

    def current(self) -> dict[str, Tensor]:
        """The tensors, so that gradients of each are whole on every rank."""
        found: dict[str, Tensor] = {}
        for it in self.tensors:
            found.update(it())
        if self.matrix.exchanges or self.matrix.parts == 1:
            return found
        whole = (B, MAGNITUDE) if self.matrix.split == "columns" else (A,)
        group = self.matrix.group
        return {
            name: copy_to_tensor_model_parallel_region(it, group=group) if name in whole else it
            for name, it in found.items()
        }

    @torch.no_grad()
    def norms(self, a: Tensor, b: Tensor) -> Tensor:
        """|W + s B A| of each row [outputs], in float32, without forming B A.

        |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A^T) b^T for each row w of W and b of B.
        """
        weight, a, b = self.matrix.weight.float(), a.float(), b.float()
        squares = weight.square().sum(1)
        squares += 2 * self.scale * ((weight @ a.t()) * b).sum(1)
        squares += self.scale**2 * ((b @ (a @ a.t())) * b).sum(1)
        if self.matrix.split == "columns" and self.matrix.parts > 1:
            dist.all_reduce(squares, group=self.matrix.group)
        return squares.clamp_min(0).sqrt()

    @torch.no_grad()
    def start_magnitude(self, *, anew: bool) -> None:
        """Make the trained norms those of the matrix as it is.

        Args:
            anew: Also if they are there already, and not zero, as they begin.
        """
        found: dict[str, Tensor] = {}
        for it in self.tensors:
            found.update(it())
        norms = self.norms(found[A], found[B])  # all ranks that share the matrix compute them
        if anew or not found[MAGNITUDE].any():
            found[MAGNITUDE].copy_(norms)

    def _update(self, inputs: Tensor, a: Tensor, b: Tensor) -> Tensor:
        matrix = self.matrix
        inner = functional.linear(inputs, a)
        if matrix.exchanges and matrix.parts > 1:
            sequence = matrix.config.sequence_parallel
            if matrix.split == "rows" and sequence:
                inner = gather_from_sequence_parallel_region(inner, group=matrix.group)
            elif matrix.split == "rows":
                inner = copy_to_tensor_model_parallel_region(inner, group=matrix.group)
            elif sequence:
                inner = reduce_scatter_to_sequence_parallel_region(inner, group=matrix.group)
            else:
                inner = reduce_from_tensor_model_parallel_region(inner, group=matrix.group)
        return functional.linear(inner, b)

    def _dropped(self, inputs: Tensor) -> Tensor:
        if not self.dropout or not self.training:
            return inputs
        matrix = self.matrix
        alike = matrix.split == "rows" and not matrix.config.sequence_parallel
        if matrix.exchanges and alike:  # the same inputs on all ranks must stay the same
            return functional.dropout(inputs, self.dropout)
        tracker = get_cuda_rng_tracker()
        if matrix.of_expert:
            with tracker.fork(get_expert_parallel_rng_tracker_name()):
                return functional.dropout(inputs, self.dropout)
        with tracker.fork():
            return functional.dropout(inputs, self.dropout)


class GroupedUpdates:
    """The adapters of a layer with the matrices of all experts of a rank, as a forward hook.

    Args:
        updates: By the number of the matrix in the layer; experts without one are left out.
    """

    def __init__(self, updates: dict[int, LowRankUpdate]) -> None:
        self.updates = updates

    def __call__(self, layer: Any, arguments: tuple[Any, ...], outputs: Any) -> Any:
        """The outputs of the layer, adapted expert by expert."""
        output, bias = outputs
        inputs, counts = arguments[0], [int(count) for count in arguments[1]]
        parts = zip(inputs.split(counts), output.split(counts), strict=True)
        adapted = [
            self.updates[number].adapted(own, out) if number in self.updates else out
            for number, (own, out) in enumerate(parts)
        ]
        return torch.cat(adapted), bias


def _inputs_of(layer: Any, inputs: Tensor) -> Tensor:
    """What a layer's matrix is multiplied with, which a fused norm has not given away."""
    weight = getattr(layer, "layer_norm_weight", None)
    if weight is None:
        return inputs
    scale = weight + 1 if getattr(layer, "zero_centered_gamma", False) else weight
    if getattr(layer, "normalization", "LayerNorm") == "RMSNorm":
        return functional.rms_norm(inputs, scale.shape, scale, layer.eps)
    return functional.layer_norm(inputs, scale.shape, scale, layer.layer_norm_bias, layer.eps)

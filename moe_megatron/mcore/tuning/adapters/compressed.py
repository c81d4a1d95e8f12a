"""Frozen matrices of routed experts in four bits, while a run trains adapters (QLoRA).

A matrix is made of its four bits for each product, forward and backward, and is gone after it. It
is there as a whole while a checkpoint is loaded or written, so that checkpoints are those of any
run: their base is what the four bits say. All products of a run make their matrices in one place:
memory that is requested and freed between activations that stay leaves holes, which took several
times the memory of the whole base.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.utils import unwrap_model
from megatron.training import training as loop
from torch import Tensor

from moe_megatron.config import AdapterConfig
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.cpu.fast.memory import give_back_freed_memory
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.replaced import replaced
from moe_megatron.mcore.tuning.adapters.adaptable import Matrix, matrices
from moe_megatron.mcore.tuning.adapters.nf4 import BLOCK, Nf4


class CompressedExperts(Callback):
    """Keeps the frozen matrices of routed experts in four bits.

    Args:
        config: Whether they are.
        say: Called on rank 0 with a line.
    """

    def __init__(self, config: AdapterConfig, say: Callable[[str], None]) -> None:
        self._on = config.frozen_experts == "nf4"
        self._say = say
        self._kept: list[_Kept] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Compress what is frozen.

        Raises:
            ConfigError: The layers hold experts in a way that cannot be compressed.
        """
        if not self._on:
            return
        chunks = unwrap_model(model)
        frozen = [it for it in matrices(chunks) if it.of_expert and not it.weight.requires_grad]
        for matrix in frozen:
            _check(matrix)
        before = sum(it.weight.numel() * it.weight.element_size() for it in frozen)
        place = _Place()
        self._kept = [_Kept(it, place) for it in frozen]
        self._compress()
        if world.rank() == 0:
            after = sum(it.bytes for it in self._kept)
            self._say(
                f"{len(self._kept)} frozen matrices of experts in 4 bits (NF4) on this rank: "
                f"{after / 2**20:.1f} MiB in place of {before / 2**20:.1f} MiB"
            )

    @contextmanager
    def whole_in_checkpoints(self) -> Iterator[None]:
        """Let Megatron load and save whole matrices, meanwhile."""
        with (
            replaced(loop, "load_checkpoint", self._whole(loop.load_checkpoint)),
            replaced(loop, "save_checkpoint", self._whole(loop.save_checkpoint)),
        ):
            yield

    def _compress(self) -> None:
        for it in self._kept:
            it.compress()
        if self._kept:
            give_back_freed_memory()

    def _whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def with_whole(*args: Any, **kwargs: Any) -> Any:
            for it in self._kept:
                it.expand()
            try:
                return function(*args, **kwargs)
            finally:
                self._compress()

        return with_whole


class _Place:
    """Memory in which one matrix at a time is whole; there is one for each shape and type."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], Tensor] = {}

    def matrix(self, compressed: Nf4) -> Tensor:
        """The matrix, until the next one is asked for."""
        device = compressed.codes.device
        key = (*compressed.shape, compressed.dtype, device)
        if key not in self._tensors:
            self._tensors[key] = torch.empty(
                compressed.shape, dtype=compressed.dtype, device=device
            )
        return compressed.matrix(out=self._tensors[key])


class _Kept:
    """One matrix, in four bits or whole.

    Args:
        matrix: The matrix.
        place: Where it is made whole for a product.
    """

    def __init__(self, matrix: Matrix, place: _Place) -> None:
        self._weight, self._layer, self._place = matrix.weight, matrix.layer, place
        self._compressed: Nf4 | None = None

    @property
    def bytes(self) -> int:
        """Memory of the four bits."""
        return 0 if self._compressed is None else self._compressed.bytes

    def compress(self) -> None:
        """Keep four bits of each number alone."""
        self._compressed = Nf4.of(self._weight)
        self._weight.data = self._weight.data.new_empty(0)
        self._layer._forward_impl = self._product  # in place of Megatron's

    def expand(self) -> None:
        """Make the matrix whole again."""
        assert self._compressed is not None
        self._weight.data = self._compressed.matrix()
        self._compressed = None  # rounding the matrix again gives the same
        del self._layer._forward_impl

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None, **_: Any) -> Tensor:
        assert self._compressed is not None
        output = _Product.apply(input, self._compressed, self._place)
        return output if bias is None else output + bias  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """`apply(x, compressed, place)`: x W^T, with a W that nobody keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compressed: Nf4, place: _Place) -> Tensor:
        """[..., columns] -> [..., rows]."""
        ctx.compressed, ctx.place = compressed, place
        return x @ place.matrix(compressed).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        return grads[0] @ ctx.place.matrix(ctx.compressed), None, None


def _check(matrix: Matrix) -> None:
    if not hasattr(matrix.layer, "_forward_impl"):
        raise ConfigError(
            "adapter.frozen_experts 'nf4' needs experts of the local layers, each with matrices of "
            "its own; give --transformer-impl local, or leave it out."
        )
    if matrix.split == "columns" and matrix.parts > 1 and matrix.weight.shape[1] % BLOCK:
        raise ConfigError(
            f"adapter.frozen_experts 'nf4' rounds blocks of {BLOCK} numbers, and each rank holds "
            f"{matrix.weight.shape[1]} columns of {matrix.place.name}; set "
            "parallel.expert_tensor_parallel_size to 1."
        )

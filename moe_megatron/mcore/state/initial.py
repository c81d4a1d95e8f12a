"""First weights that depend on the seed and on the model's shape alone.

Megatron draws the tensors of a rank one after the other, from generators that depend on the layout
and on what was drawn before, by its warm-up too: the same seed is another model under another
layout or batch. Here each tensor of the whole model is drawn again, from a seed made of the run's
and of its name in checkpoints, by the method that Megatron drew it with, and every rank keeps its
part. What that method is, and which part of what a tensor is, are Megatron's to say; experts that
are modules of another kind draw their own.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from moe_megatron.mcore.layers.pooled_experts import draw_experts
from moe_megatron.mcore.state.sharded import sharded_tensors

Draw = Callable[[Tensor], Any]
"""Fills a tensor with random numbers of torch's default generator, such as `torch.nn.init.normal_`
with a standard deviation."""

_METHODS = ("init_method", "output_layer_init_method", "embedding_init_method")


class InitialWeights:
    """Draws the weights of one model.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[int, tuple[int, Draw]] = {}
        """By the address of its memory: size of a drawn tensor, and how it was drawn."""

    def watch(self, transformer: TransformerConfig) -> None:
        """Remember what a model that is built with this configuration, changed in place, draws."""
        for name in _METHODS:
            if (method := getattr(transformer, name)) is not None:
                setattr(transformer, name, self._watched(method))

    def draw(self, chunks: list[Any]) -> list[Any]:
        """Draw all that was drawn once more; every rank calls it, with what it built.

        Args:
            chunks: Megatron's model chunks of this rank, before DDP wraps them.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            for chunk in chunks:
                methods = dict(self._methods(chunk))
                for part in sharded_tensors(chunk):
                    if (method := methods.get(_address(part.data))) is not None:
                        part.data.copy_(self._whole(part, method)[_slices(part)])
                draw_experts(chunk, self._seed)
        for chunk in chunks:  # stages that share the embedding must start with one
            chunk.setup_embeddings_and_output_layer()
        self._drawn.clear()
        return chunks

    def _watched(self, method: Draw) -> Draw:
        def draw(tensor: Tensor) -> Any:
            self._drawn[_address(tensor)] = (tensor.numel(), method)
            return method(tensor)

        return draw

    def _methods(self, chunk: Any) -> Iterator[tuple[int, Draw]]:
        """How each parameter was drawn, by its address, without those that were not."""
        for parameter in chunk.parameters():
            # Memory that is given back is used again: by a tensor of another size, it may be hoped.
            size, method = self._drawn.get(_address(parameter), (None, None))
            if method is not None and size == parameter.numel() and not parameter.is_meta:
                yield _address(parameter), method

    def _whole(self, part: ShardedTensor, method: Draw) -> Tensor:
        leading = part.prepend_axis_num
        number = 0  # of the tensor among those of its name, such as the expert of a layer
        for offset, length in zip(
            part.global_offset[:leading], part.global_shape[:leading], strict=True
        ):
            number = number * length + offset
        digest = hashlib.sha256(f"{self._seed}|{part.key}".encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest[:4]) + number)
        whole = torch.empty(part.global_shape[leading:], dtype=torch.float32)
        method(whole)
        return whole


def _slices(part: ShardedTensor) -> tuple[slice, ...]:
    return tuple(part.global_slice()[part.prepend_axis_num :])


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

"""What a store of experts is: the numbers of each expert, read into memory that is there already.

A store of another kind (a bucket, packed numbers) is an object with these members; it needs no base
class.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from torch import Tensor

from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization.kernels import Matrix


class ExpertStore(Protocol):
    """The experts of a model.

    An expert is two matrices: its first [width, hidden], where it has a gate that one's rows before
    those of the up projection, and its second [hidden, ffn].
    """

    path: Path
    """The folder of the model, which has all but the experts."""
    layers: tuple[int, ...]
    """Layers with experts, from 0."""
    experts: int
    """Of a layer."""
    top_k: int
    """Experts of a token."""
    nbytes: int
    """Bytes of memory of an expert, the largest if they differ."""
    dtype: str
    """Of the numbers that it computes with, as safetensors calls it."""

    @property
    def keys(self) -> Collection[Key]:
        """Layers, as the model counts them from 0, and experts."""

    def bytes_to_read(self, key: Key) -> int:
        """Bytes that reading an expert takes."""

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert; several threads may call it.

        Raises:
            CheckpointError: It cannot be read; the message names the file.
        """

    def matrices(self, key: Key, memory: Tensor) -> tuple[Matrix, Matrix]:
        """What an expert computes with, in memory that it was read into, uint8 [nbytes]."""

    def close(self) -> None:
        """Close its files."""

"""What a store of experts is: the numbers of each expert, read into memory that is there already.

A store of another kind (a bucket, packed numbers) is an object with these members; it needs no base
class.
"""

from collections.abc import Collection
from typing import Protocol

from moe_megatron.inference.cache.policies import Key


class ExpertStore(Protocol):
    """The experts of a model, all of one size.

    An expert is two matrices one after the other: its first [width, hidden], where it has a gate
    that one's rows before those of the up projection, and its second [hidden, ffn].
    """

    @property
    def keys(self) -> Collection[Key]:
        """Layers, as the model counts them from 0, and experts."""

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of both matrices."""

    @property
    def dtype(self) -> str:
        """Type of the numbers, in the words of safetensors, such as BF16."""

    @property
    def nbytes(self) -> int:
        """Bytes of an expert."""

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert; several threads may call it.

        Raises:
            CheckpointError: It cannot be read; the message names the file.
        """

    def close(self) -> None:
        """Close its files."""

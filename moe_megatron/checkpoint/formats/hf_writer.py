"""Plans the layout of safetensors files: headers, and the position of each tensor.

Everything is known before the first byte is written, so that parts can be written in any order.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import SINGLE

_SMALLEST_SHARD = 1_000_000_000
_LARGEST_SHARD = 5_000_000_000
_ALIGNMENT = 64
"""Alignment of the first tensor of a file, so that a memory-mapped file can be used directly."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * dtypes.item_size(self.dtype)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: header, then tensors, without gaps."""

    name: str
    header: bytes
    tensors: tuple[tuple[NewTensor, int], ...]
    """The tensors in file order, each with its offset in the file."""

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""
        return len(self.header) + sum(tensor.nbytes for tensor, _ in self.tensors)


def lay_out(tensors: Sequence[NewTensor], max_shard_bytes: int | None = None) -> tuple[Shard, ...]:
    """Distribute tensors over files.

    Args:
        tensors: The tensors, in the order in which to write them.
        max_shard_bytes: Largest amount of data in one file, unless a single tensor is larger. None
            means about an eighth of the total, between 1 and 5 GB, so that several workers can
            write at the same time.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    limit = max_shard_bytes or min(max(total // 8, _SMALLEST_SHARD), _LARGEST_SHARD)
    of_shards: list[list[NewTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if of_shards[-1] and filled + tensor.nbytes > limit:
            of_shards.append([])
            filled = 0
        of_shards[-1].append(tensor)
        filled += tensor.nbytes
    return tuple(
        _shard(_shard_name(number, len(of_shards)), inside)
        for number, inside in enumerate(of_shards, 1)
    )


def index_text(shards: Sequence[Shard]) -> str:
    """The index that names the file of each tensor, as JSON."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor, _ in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor, _ in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


def _shard_name(number: int, shards: int) -> str:
    return SINGLE if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"


def _shard(name: str, tensors: Sequence[NewTensor]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    offsets = []
    for tensor in tensors:
        offsets.append(end)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    start = struct.pack("<Q", len(text)) + text
    starts = [len(start) + offset for offset in offsets]
    return Shard(name, start, tuple(zip(tensors, starts, strict=True)))

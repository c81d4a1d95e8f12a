"""Reads boxes (parts) of saved Megatron tensors, as a model in any parallel layout needs them."""

import mmap
from collections.abc import Sequence
from math import prod
from types import TracebackType

import torch

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.torch_dist import Chunk, SavedTensor, Sizes, TorchDist
from moe_megatron.errors import MappingError


class BoxReader:
    """Reads parts of a checkpoint's tensors, independently of the chunks in which they were saved.

    Files stay mapped, with pages shared with other processes, until `close`.
    """

    def __init__(self, saved: TorchDist) -> None:
        self._saved = saved
        self._maps: dict[int, mmap.mmap] = {}
        self._chunks: dict[str, dict[Sizes, Chunk]] = {}

    def __enter__(self) -> "BoxReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files."""
        while self._maps:
            self._maps.popitem()[1].close()

    def read(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A new tensor with the content of a box.

        Args:
            key: Name of the saved tensor.
            offsets: Start of the box along each axis.
            sizes: Length of the box along each axis.

        Raises:
            MappingError: The checkpoint has no such tensor, or the box extends beyond it.
            CheckpointError: Its records are damaged.
        """
        tensor = self._tensor(key, offsets, sizes)
        box = torch.empty(tuple(sizes), dtype=dtypes.to_torch(tensor.dtype))
        filled = 0
        for chunk in self._candidates(tensor, tuple(offsets), tuple(sizes)):
            begins = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
            ends = [
                min(a + n, b + m)
                for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
                continue
            spans = list(zip(begins, ends, strict=True))
            there = [slice(b - o, e - o) for (b, e), o in zip(spans, offsets, strict=True)]
            here = [slice(b - o, e - o) for (b, e), o in zip(spans, chunk.offsets, strict=True)]
            offset = self._saved.data_offset(tensor, chunk)
            flat = torch.frombuffer(
                self._map(chunk.record.file),
                dtype=box.dtype,
                count=prod(chunk.sizes),
                offset=offset,
            )
            box[tuple(there)] = flat.view(chunk.sizes)[tuple(here)]
            filled += prod(end - begin for begin, end in spans)
        if filled != box.numel():
            raise MappingError(
                f"{self._saved.path}: {key} is saved with gaps at {list(offsets)}; the checkpoint "
                "is incomplete."
            )
        return box

    def _candidates(self, tensor: SavedTensor, offsets: Sizes, sizes: Sizes) -> tuple[Chunk, ...]:
        """The chunk that is exactly the box if there is one, else all chunks (a slow search)."""
        if tensor.key not in self._chunks:
            self._chunks[tensor.key] = {chunk.offsets: chunk for chunk in tensor.chunks}
        chunk = self._chunks[tensor.key].get(offsets)
        return (chunk,) if chunk is not None and chunk.sizes == sizes else tensor.chunks

    def _tensor(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> SavedTensor:
        tensor = self._saved.tensors.get(key)
        if tensor is None:
            raise MappingError(
                f"{self._saved.path} lacks {key}, which Megatron's model of its configuration "
                "needs; the checkpoint belongs to another configuration."
            )
        fits = len(offsets) == len(sizes) == len(tensor.shape) and all(
            at + size <= length
            for at, size, length in zip(offsets, sizes, tensor.shape, strict=True)
        )
        if not fits:
            wanted = [at + size for at, size in zip(offsets, sizes, strict=True)]
            raise MappingError(
                f"{self._saved.path}: {key} has the shape {list(tensor.shape)}, but Megatron's "
                f"model needs at least {wanted}; the checkpoint belongs to another configuration."
            )
        return tensor

    def _map(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            with (self._saved.path / self._saved.files[file]).open("rb") as opened:
                # A private mapping, because torch needs a writable buffer.
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]

"""Experts of GPT-OSS: a slice of each of a layer's stacked tensors, transposed and with biases.

Weights of 4 bits (MXFP4), as they are published, are multiplied out when an expert comes into
memory, since torch has no product for them on a processor: a file of 4 bits, a cache of 16.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from moe_megatron.checkpoint.execute.compute import unpacked
from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.families.links import BLOCKS, SCALES, Link, Transform
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.store.scattered_reads import OpenFiles, Piece, Read, joined

_PARTS = ("linear_fc1.weight", "linear_fc1.bias", "linear_fc2.weight", "linear_fc2.bias")
_PER_SCALE = 32


@dataclass(slots=True)
class TransposedWithBias:
    """A matrix of which columns are outputs, and what is added to the product."""

    weight: Tensor
    """[I, O]."""
    bias: Tensor
    """[O]."""

    def __call__(self, rows_TI: Tensor) -> Tensor:
        """The product, as transformers has it."""
        return rows_TI @ self.weight + self.bias

    def dequantized(self) -> Tensor:
        """The matrix [O, I]."""
        return self.weight.t()


@dataclass(frozen=True, slots=True)
class _Packed:
    """Numbers of 4 bits of a matrix in the memory that they are read into, and where it belongs."""

    numbers: slice
    exponents: slice
    rows: int
    """Outputs."""
    place: slice
    """Of the matrix, [columns, rows] in the type of the model, in the expert's memory."""


@dataclass(frozen=True, slots=True)
class _Expert:
    direct: tuple[Read, ...]
    """Into the expert's memory."""
    packed: tuple[Read, ...]
    """Into memory of the thread."""


def is_stacked(folder: HfFolder) -> bool:
    """Whether experts of a model folder are transposed in stacked tensors."""
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    links = family.links_of(geometry, folder.tensors)
    return any(
        block.transform is not Transform.NONE
        for link in links
        if link.expert is not None
        for block in link.blocks
    )


class StackedStore:
    """The stacked experts of a model folder.

    Args:
        path: A folder with `config.json` and safetensors.

    Raises:
        CheckpointError: It is incomplete or damaged, or its experts are of another form.
        MappingError: There is no table for its family.
    """

    def __init__(self, path: Path) -> None:
        folder = HfFolder(path, quantized=True)
        family = family_of(folder.config)
        geometry = family.geometry(folder.config, folder.tensors)
        names: dict[int, dict[str, str]] = {}
        for link in family.links_of(geometry, folder.tensors):
            if link.expert == 0 and link.layer is not None:
                part = link.key.partition(".experts.experts.")[2]
                names.setdefault(link.layer, {})[part] = _whole_tensor(path, link)
        self.path = path
        self.layers = tuple(sorted(names))
        self.experts, self.top_k = geometry.experts, geometry.top_k
        if not names or any(found.keys() != set(_PARTS) for found in names.values()):
            raise CheckpointError(
                f"{path}: experts of this family are stacked and not of two matrices with biases, "
                "and are not read one by one yet; load it with transformers."
            )
        first = names[self.layers[0]]
        self.dtype = folder.tensors[first["linear_fc1.bias"]].dtype
        width, inner, hidden = geometry.two_expert_width, geometry.expert_width, geometry.hidden
        self._shapes = ((hidden, width), (width,), (inner, hidden), (hidden,))
        item = dtypes.item_size(self.dtype)
        self._places: list[slice] = []
        self.nbytes = 0
        for shape in self._shapes:
            self._places.append(slice(self.nbytes, self.nbytes + prod(shape) * item))
            self.nbytes += prod(shape) * item
        self._packed: list[_Packed] = []
        self._scratch = threading.local()
        self._scratch_bytes = 0
        self._experts = {
            (layer, expert): self._planned(folder.tensors, found, expert)
            for layer, found in names.items()
            for expert in range(self.experts)
        }
        self._files = OpenFiles(path, {it.file for it in folder.tensors.values()})

    @property
    def keys(self) -> frozenset[Key]:
        """Layers, from 0, and experts."""
        return frozenset(self._experts)

    def bytes_to_read(self, key: Key) -> int:
        """Bytes that reading an expert takes."""
        expert = self._experts[key]
        parts = [part for read in (*expert.direct, *expert.packed) for part in read.parts]
        return sum(it.stop - it.start for it in parts)

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert; several threads may call it.

        Raises:
            CheckpointError: The file is shorter than it was, or cannot be read.
        """
        expert = self._experts[key]
        self._files.read(key, expert.direct, memory)
        if not expert.packed:
            return
        scratch = self._room()
        self._files.read(key, expert.packed, memoryview(scratch.numpy()))
        slot = torch.frombuffer(memory, dtype=torch.uint8)
        for it in self._packed:
            numbers = scratch[it.numbers].view(it.rows, -1)
            matrix = unpacked(numbers, scratch[it.exponents].view(it.rows, -1))
            place = slot[it.place].view(dtypes.to_torch(self.dtype))
            place.view(-1, it.rows).copy_(matrix.t())

    def matrices(self, key: Key, memory: Tensor) -> tuple[TransposedWithBias, TransposedWithBias]:
        """Both matrices of an expert that was read into memory, uint8 [nbytes]."""
        dtype = dtypes.to_torch(self.dtype)
        parts = [
            memory[place].view(dtype).view(shape)
            for place, shape in zip(self._places, self._shapes, strict=True)
        ]
        return TransposedWithBias(parts[0], parts[1]), TransposedWithBias(parts[2], parts[3])

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _room(self) -> Tensor:
        """Memory of this thread for the numbers of the file."""
        room: Tensor | None = getattr(self._scratch, "room", None)
        if room is None:
            room = self._scratch.room = torch.empty(self._scratch_bytes, dtype=torch.uint8)
        return room

    def _planned(
        self, tensors: Mapping[str, TensorInfo], names: Mapping[str, str], expert: int
    ) -> _Expert:
        """The reads of an expert; where its packed matrices are is the same for all."""
        direct: list[Piece] = []
        packed: list[Piece] = []
        matrices: list[_Packed] = []
        begin = 0
        for part, place, shape in zip(_PARTS, self._places, self._shapes, strict=True):
            tensor = tensors[names[part]]
            if not tensor.name.endswith(BLOCKS):
                self._check(tensor, shape, self.dtype)
                direct.append(self._slice(tensor, expert, place.start))
                continue
            rows, columns = shape[1], shape[0]
            exponents = tensors[tensor.name.removesuffix(BLOCKS) + SCALES]
            self._check(tensor, (rows, columns // _PER_SCALE, _PER_SCALE // 2), "U8")
            self._check(exponents, (rows, columns // _PER_SCALE), "U8")
            middle = begin + tensor.nbytes // self.experts
            end = middle + exponents.nbytes // self.experts
            packed += [self._slice(tensor, expert, begin), self._slice(exponents, expert, middle)]
            matrices.append(_Packed(slice(begin, middle), slice(middle, end), rows, place))
            begin = end
        self._packed, self._scratch_bytes = matrices, max(self._scratch_bytes, begin)
        return _Expert(joined(direct), joined(packed))

    def _slice(self, tensor: TensorInfo, expert: int, place: int) -> Piece:
        """An expert's part of a stacked tensor."""
        nbytes = tensor.nbytes // self.experts
        return Piece(tensor.file, tensor.offset + expert * nbytes, nbytes, place)

    def _check(self, tensor: TensorInfo, shape: tuple[int, ...], dtype: str) -> None:
        wanted = (self.experts, *shape)
        if (tensor.shape, tensor.dtype) != (wanted, dtype):
            raise CheckpointError(
                f"{self.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, and "
                f"{dtype} {list(wanted)} was expected."
            )


def _whole_tensor(path: Path, link: Link) -> str:
    """The one tensor that has a part of all experts."""
    names = {block.name for block in link.blocks}
    if len(names) > 1:
        raise CheckpointError(f"{path}: {link.key} is of several tensors: {', '.join(names)}.")
    return names.pop()

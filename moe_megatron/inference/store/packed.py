"""Experts in 4 or 8 bits, as `inference/quantization` writes them and llm-compressor does.

Bits and groups of each projection are seen from the shapes of its tensors, so that experts may
differ. 4-bit numbers are put into the order of torch's product when they come into memory, by the
thread that reads them: the order differs between processors, so that no file can have it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.config.checks import join_words
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization import names
from moe_megatron.inference.quantization.kernel_order import reorder
from moe_megatron.inference.quantization.kernels import EightBit, FourBit, Matrix, WithOutliers
from moe_megatron.inference.quantization.names import Projection
from moe_megatron.inference.quantization.packing import unpack_zeros
from moe_megatron.inference.quantization.precision import GROUP_SIZES, ROWS, Precision
from moe_megatron.inference.store.scattered_reads import OpenFiles, Piece, Read, joined

_ALIGNED = 64
_KINDS = (names.PACKED, names.SCALE, names.ZERO_POINT, names.OUTLIER_INDEX, names.OUTLIERS)
_ZERO = 128
"""What is added to 8-bit numbers in the file."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A matrix in memory: bytes from the beginning of an expert."""

    shape: tuple[int, int]
    precision: Precision
    places: dict[str, slice]
    """Of each kind of tensor."""


@dataclass(frozen=True, slots=True)
class _Expert:
    """How an expert is read, and where its parts are, as in the file and ready to compute."""

    reads: tuple[Read, ...]
    read: tuple[_Layout, _Layout]
    ready: tuple[_Layout, _Layout]
    shifts: tuple[tuple[slice, int], ...]
    """Indices that count from the first row of a projection, and what makes them the matrix's."""
    bytes_to_read: int
    nbytes: int


class PackedStore:
    """The packed experts of a model folder.

    Args:
        path: A folder with `config.json` and safetensors.

    Raises:
        CheckpointError: It is incomplete or damaged, or packed in a way that is not read here.
        MappingError: There is no table for its family.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = HfFolder(path, quantized=True)
        family = family_of(folder.config)
        self.weights = frozenset(map(_weight, folder.tensors))
        geometry = family.geometry(folder.config, self.weights)
        found = names.projections(family, geometry)
        self.experts, self.top_k = geometry.experts, geometry.top_k
        self.layers = tuple(sorted({layer for layer, _ in found}))
        if not found:
            raise CheckpointError(f"{path} is a model without experts, so there are none to read.")
        self.dtype = _dtype(path, folder.tensors, found)
        plan = _Plan(path, folder.tensors, self.dtype)
        self._experts = {key: plan.expert(them) for key, them in found.items()}
        self.nbytes = max(it.nbytes for it in self._experts.values())
        self._scratch = threading.local()
        self._files = OpenFiles(
            path, (read.file for it in self._experts.values() for read in it.reads)
        )

    @property
    def keys(self) -> frozenset[Key]:
        """Layers, from 0, and experts."""
        return frozenset(self._experts)

    def bytes_to_read(self, key: Key) -> int:
        """Bytes that reading an expert takes."""
        return self._experts[key].bytes_to_read

    def precision(self, key: Key) -> Precision:
        """Bits and groups of an expert."""
        return self._experts[key].ready[0].precision

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert, ready to be computed with.

        Raises:
            CheckpointError: The file is shorter than it was, or cannot be read.
        """
        expert = self._experts[key]
        scratch = self._room(expert.bytes_to_read)
        self._files.read(key, expert.reads, memoryview(scratch.numpy()))
        for place, rows_before in expert.shifts:
            scratch[place].view(torch.int32).add_(rows_before)
        slot = torch.frombuffer(memory, dtype=torch.uint8)
        dtype = dtypes.to_torch(self.dtype)
        for before, after in zip(expert.read, expert.ready, strict=True):
            _prepare(before, after, scratch, slot, dtype)

    def matrices(self, key: Key, memory: Tensor) -> tuple[Matrix, Matrix]:
        """Both matrices of an expert that was read into memory, uint8 [nbytes]."""
        first, second = self._experts[key].ready
        dtype = dtypes.to_torch(self.dtype)
        return _matrix(first, memory, dtype), _matrix(second, memory, dtype)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _room(self, nbytes: int) -> Tensor:
        """Memory of this thread for numbers in the order of the file."""
        room: Tensor | None = getattr(self._scratch, "room", None)
        if room is None or len(room) < nbytes:
            room = self._scratch.room = torch.empty(nbytes, dtype=torch.uint8)
        return room


def _weight(name: str) -> str:
    """The name of the weight that a tensor is a part of; families know no others."""
    return name.removesuffix("_packed") if name.endswith(names.PACKED) else name


def _dtype(
    path: Path, tensors: Mapping[str, TensorInfo], found: Mapping[Key, Sequence[Projection]]
) -> str:
    """Type of the scales, which all experts share."""
    there = {
        tensors[it.module + names.SCALE].dtype
        for them in found.values()
        for it in them
        if it.module + names.SCALE in tensors
    }
    if len(there) != 1 or not there <= dtypes.FLOATS:
        raise CheckpointError(
            f"{path}: the scales of its packed experts (*{names.SCALE}) are "
            f"{', '.join(sorted(there)) or 'missing'}, and one of F16, BF16 and F32 is needed for "
            "all; quantize the model again with `moe-megatron quantize`."
        )
    return there.pop()


class _Plan:
    """From headers to reads and places."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], dtype: str) -> None:
        self._path, self._tensors, self._dtype = path, tensors, dtype

    def expert(self, found: Sequence[Projection]) -> _Expert:
        """The plan of one expert."""
        matrices = [[it for it in found if it.matrix == number] for number in (0, 1)]
        pieces: list[Piece] = []
        shifts: list[tuple[slice, int]] = []
        read, ready, end = [], [], 0
        at = 0
        for them in matrices:
            shape = sum(it.rows for it in them), them[0].columns
            precision = self._precision(them)
            places = {}
            for kind in _KINDS:
                start = at
                for it in them:
                    tensor = self._tensors.get(it.module + kind)
                    if tensor is None:
                        continue
                    pieces.append(Piece(tensor.file, tensor.offset, tensor.nbytes, at))
                    if kind == names.OUTLIER_INDEX and it.start:
                        shifts.append((slice(at, at + tensor.nbytes), it.start * it.columns))
                    at += tensor.nbytes
                if at > start:
                    places[kind] = slice(start, at)
                at = _aligned(at)
            read.append(_Layout(shape, precision, places))
            layout, end = self._ready(read[-1], end)
            ready.append(layout)
        return _Expert(
            joined(pieces), (read[0], read[1]), (ready[0], ready[1]), tuple(shifts), at, end
        )

    def _ready(self, read: _Layout, start: int) -> tuple[_Layout, int]:
        """Where a matrix is when it can be computed with; and where it ends."""
        places = {}
        for kind, place in read.places.items():
            if kind == names.ZERO_POINT:
                continue  # beside the scales, multiplied with them
            nbytes = place.stop - place.start
            if kind == names.SCALE and read.precision.bits == 4:
                nbytes *= 2  # each has a zero beside it
            places[kind] = slice(start, start + nbytes)
            start = _aligned(start + nbytes)
        return _Layout(read.shape, read.precision, places), start

    def _precision(self, them: Sequence[Projection]) -> Precision:
        """Bits and groups of a matrix, which its projections must share."""
        found = {self._of(it) for it in them}
        if len(found) > 1:
            raise CheckpointError(
                f"{self._path}: {them[0].module} and {them[-1].module} have different bits or "
                "groups, and they are one matrix here; quantize the model again."
            )
        return found.pop()

    def _of(self, it: Projection) -> Precision:
        packed = self._tensors.get(it.module + names.PACKED)
        scale = self._tensors.get(it.module + names.SCALE)
        if packed is None or scale is None:
            raise CheckpointError(
                f"{self._path}: {it.module} has no {names.PACKED[1:]} with {names.SCALE[1:]}: this "
                "expert was not quantized; quantize the model again with `moe-megatron quantize`."
            )
        zeros = self._tensors.get(it.module + names.ZERO_POINT)
        for bits in (4, 8):
            groups = scale.shape[-1] if len(scale.shape) == 2 else 1
            size = None if groups == 1 and bits == 8 else it.columns // max(groups, 1)
            precision = Precision(bits, size, zeros is None)
            if (
                packed.dtype == "I32"
                and packed.shape == (it.rows, it.columns * bits // 32)
                and scale.shape == (it.rows, precision.groups(it.columns))
                and (bits == 8 or (size in GROUP_SIZES and it.rows % ROWS == 0))
                and (zeros is None or (bits == 4 and _are_zeros(zeros, it.rows, groups)))
            ):
                return precision
        beside = "" if zeros is None else f" and zero points {zeros.dtype} {zeros.shape}"
        raise CheckpointError(
            f"{self._path}: {it.module} is packed as {packed.dtype} {packed.shape} with scales "
            f"{scale.shape}{beside}, and what is read are symmetric 8 bits with a scale for each "
            f"of its {it.rows} rows, or 4 bits in groups of {join_words(GROUP_SIZES)}, with packed "
            "zero points or none."
        )


def _are_zeros(zeros: TensorInfo, rows: int, groups: int) -> bool:
    return zeros.dtype == "I32" and zeros.shape == (rows // 8, groups)


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED


def _prepare(
    before: _Layout, after: _Layout, scratch: Tensor, slot: Tensor, dtype: torch.dtype
) -> None:
    """Bring a matrix from the order of the file into that of the product."""
    rows = before.shape[0]
    packed = slot[after.places[names.PACKED]].view(rows, -1)
    codes = scratch[before.places[names.PACKED]].view(rows, -1)
    if before.precision.bits == 4:
        reorder(codes, packed)
        scales = scratch[before.places[names.SCALE]].view(dtype).view(rows, -1).t()
        pairs = slot[after.places[names.SCALE]].view(dtype).view(-1, rows, 2)
        pairs[..., 0] = scales
        if names.ZERO_POINT in before.places:
            words = scratch[before.places[names.ZERO_POINT]].view(torch.int32).view(rows // 8, -1)
            torch.mul(scales, -unpack_zeros(words, 4), out=pairs[..., 1])
        else:
            pairs[..., 1] = 0
    else:
        torch.bitwise_xor(codes, _ZERO, out=packed)
        slot[after.places[names.SCALE]] = scratch[before.places[names.SCALE]]
    for kind in (names.OUTLIER_INDEX, names.OUTLIERS):
        if kind in before.places:
            slot[after.places[kind]] = scratch[before.places[kind]]


def _matrix(layout: _Layout, memory: Tensor, dtype: torch.dtype) -> Matrix:
    """What computes with a matrix that is ready."""
    rows, columns = layout.shape
    packed = memory[layout.places[names.PACKED]].view(rows, -1)
    scales = memory[layout.places[names.SCALE]].view(dtype)
    size = layout.precision.group_size
    found: EightBit | FourBit
    if size is None:
        found = EightBit(packed.view(torch.int8), scales)
    else:
        found = FourBit(packed, scales.view(-1, rows, 2), size)
    if names.OUTLIERS not in layout.places:
        return found
    index = memory[layout.places[names.OUTLIER_INDEX]].view(torch.int32)
    values = memory[layout.places[names.OUTLIERS]].view(dtype)
    return WithOutliers(found, index, values, columns)

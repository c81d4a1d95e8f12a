"""A Megatron `torch_dist` checkpoint: its content, and the position of each matrix in its files.

It may have been saved with any tensor, pipeline and expert parallel sizes: a tensor consists of
chunks, which split rows and columns. Only metadata is read, and no code that it names is executed.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, product
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.unpickler import Inert, load_inert, load_inert_file
from moe_megatron.checkpoint.formats.view import View, packed
from moe_megatron.checkpoint.formats.zip_record import Record, read_record
from moe_megatron.config.checkpoint_files import (
    METADATA,
    RELEASE,
    TRACKER,
    checkpoints_of,
    iteration_dir,
    read_tracker,
)
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.families.links import Link, is_of_vocabulary, matrix_size, saved_names
from moe_megatron.reading import read_json

BACKEND = "metadata.json"
COMMON_STATE = "common_state/shard_0_1"
_LEGACY_COMMON_STATE = "common.pt"

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Where a record is, which is a torch.save archive inside a file."""

    file: int
    """Index into `TorchDist.files`."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, saved as one record."""

    offsets: Sizes
    sizes: Sizes
    record: ByteRange


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of the checkpoint."""

    key: str
    dtype: str
    shape: Sizes
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a matrix, and the view that holds it."""

    row: int
    column: int
    view: View


@dataclass(frozen=True, slots=True)
class FoundMatrix:
    """The matrix of a link: the tensor that contains it, its index in it, and its regions."""

    tensor: SavedTensor
    index: Sizes
    """Index along the leading axes of the tensor: layer and expert."""
    regions: tuple[Region, ...]


def resolve(path: Path) -> Path:
    """The folder with the tensors: `path` itself, or its newest iteration, or that of a run.

    Raises:
        CheckpointError: Neither is a finished checkpoint.
    """
    if (path / METADATA).is_file():
        return path
    path = checkpoints_of(path)
    try:
        text = read_tracker(path)
    except OSError:
        raise CheckpointError(
            f"{path} holds no finished Megatron checkpoint: it has neither {METADATA} nor "
            f"{TRACKER}. Give an iter_* folder or the folder around it."
        ) from None
    folder = iteration_dir(path, int(text)) if text.isdecimal() else path / RELEASE
    if (text.isdecimal() or text == RELEASE) and (folder / METADATA).is_file():
        return folder
    raise CheckpointError(
        f"{path / TRACKER} says '{text[:40]}', but {folder / METADATA} is missing; give a complete "
        "iter_* folder."
    )


class TorchDist:
    """The metadata of a checkpoint. Files stay open until `close`.

    Raises:
        CheckpointError: The folder is not a finished `torch_dist` checkpoint, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = resolve(path)
        self._check_backend()
        metadata = load_inert_file(self.path / METADATA)
        try:
            self._read(metadata)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(
                f"{self.path / METADATA} is not metadata of torch.distributed.checkpoint "
                f"({type(error).__name__}: {error}); use another checkpoint."
            ) from None
        self._descriptors: dict[int, int] = {}
        self._chunks: dict[tuple[str, int], dict[Sizes, list[Chunk]]] = {}
        self._checked: dict[tuple[bytes, Sizes], int] = {}

    def __enter__(self) -> "TorchDist":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def find(self, link: Link) -> FoundMatrix | None:
        """Find the matrix of a link under any of its names; None if the checkpoint lacks it.

        Raises:
            MappingError: Its shape is not that of the model.
            CheckpointError: Its records are damaged or do not cover the whole matrix.
        """
        for key in (link.key, *link.aliases):
            for name, index in saved_names(key, link):
                if name in self.tensors:
                    return self._matrix(self.tensors[name], index, link)
        return None

    def matrix_at(self, tensor: SavedTensor, index: Sizes) -> FoundMatrix:
        """The matrix of a tensor at an index along its leading axes.

        Raises:
            CheckpointError: Its records are damaged or do not cover the whole matrix.
        """
        found = self._by_index(tensor, len(index)).get(index, [])
        regions = tuple(self._region(tensor, chunk, index) for chunk in found)
        self._check_complete(tensor, tensor.shape[len(index) :], regions)
        return FoundMatrix(tensor, index, regions)

    def content(self, key: str) -> bytes:
        """The record of an object, as it is.

        Raises:
            CheckpointError: It cannot be read.
        """
        where = self.objects[key]
        return os.pread(self._descriptor(where.file), where.length, where.offset)

    def common_state(self) -> dict[str, Any]:
        """Everything that is not a tensor: iteration, arguments. Objects are replaced by `Inert`.

        Raises:
            CheckpointError: It is damaged, or names code to execute.
        """
        legacy = self.path / _LEGACY_COMMON_STATE
        if COMMON_STATE in self.objects:
            where = self.objects[COMMON_STATE]
            found = load_inert(
                self._read_record(where, COMMON_STATE).pickle, f"{self.path}'s state"
            )
            found = found[0] if isinstance(found, list) and found else found
        elif legacy.is_file():
            descriptor = os.open(legacy, os.O_RDONLY)
            try:
                record = read_record(descriptor, 0, legacy.stat().st_size, str(legacy))
            finally:
                os.close(descriptor)
            found = load_inert(record.pickle, str(legacy))
        else:
            return {}
        return found if isinstance(found, dict) else {}

    def _check_backend(self) -> None:
        path = self.path / BACKEND
        try:
            backend = read_json(path)["sharded_backend"]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{path} is missing or unreadable; a finished Megatron checkpoint has it."
            ) from None
        if backend != "torch_dist":
            raise CheckpointError(
                f"{self.path} is a '{backend}' checkpoint, but torch_dist is needed; save it with "
                "--ckpt-format torch_dist."
            )

    def _read(self, metadata: Inert) -> None:
        storage: dict[str, dict[Sizes | None, Inert]] = defaultdict(dict)
        for index, info in metadata.get("storage_data").items():
            offset = index.get("offset")
            storage[index.get("fqn")][None if offset is None else tuple(offset)] = info
        names = sorted({i.get("relative_path") for by in storage.values() for i in by.values()})
        self.files: tuple[str, ...] = tuple(names)
        self._check_files()
        numbers = {name: number for number, name in enumerate(names)}
        self.tensors: dict[str, SavedTensor] = {}
        self.objects: dict[str, ByteRange] = {}
        for key, description in metadata.get("state_dict_metadata").items():
            records = {offset: self._range(key, i, numbers) for offset, i in storage[key].items()}
            if type(description).__name__ == "TensorStorageMetadata":
                self.tensors[key] = self._tensor(key, description, records)
            elif None in records:
                self.objects[key] = records[None]

    def _check_files(self) -> None:
        self._sizes = []
        for name in self.files:
            if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
                raise CheckpointError(
                    f"{self.path / METADATA} names the file {name!r}, which is not in its folder; "
                    "files outside it are not read."
                )
            path = self.path / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; copy the whole folder again.")
            self._sizes.append(path.stat().st_size)

    def _range(self, key: str, info: Inert, numbers: dict[str, int]) -> ByteRange:
        if info.get("transform_descriptors"):
            raise CheckpointError(
                f"{self.path}: {key} is compressed ({info.get('transform_descriptors')}); save the "
                "checkpoint without compression."
            )
        found = ByteRange(
            numbers[info.get("relative_path")], info.get("offset"), info.get("length")
        )
        size = self._sizes[found.file]
        if found.offset < 0 or found.length < 0 or found.offset + found.length > size:
            raise CheckpointError(
                f"{self.path / self.files[found.file]} has {size} bytes, but {key} should end at "
                f"byte {found.offset + found.length}: the file is truncated; copy it again."
            )
        return found

    def _tensor(
        self, key: str, description: Inert, records: dict[Sizes | None, ByteRange]
    ) -> SavedTensor:
        torch_name = description.get("properties").state[0]
        dtype = dtypes.from_torch_name(torch_name.removeprefix("torch."))
        if dtype is None:
            raise CheckpointError(f"{self.path}: {key} has the unknown type {torch_name}.")
        chunks = []
        for box in description.get("chunks"):
            offsets, sizes = tuple(box.get("offsets")), tuple(box.get("sizes"))
            if offsets not in records:
                raise CheckpointError(
                    f"{self.path / METADATA} lacks the position of {key} at {offsets}; the "
                    "checkpoint is incomplete."
                )
            chunks.append(Chunk(offsets, sizes, records[offsets]))
        return SavedTensor(key, dtype, tuple(description.get("size")), tuple(chunks))

    def _matrix(self, tensor: SavedTensor, index: Sizes, link: Link) -> FoundMatrix:
        leading = len(index)
        matrix = tensor.shape[leading:]
        padded = is_of_vocabulary(tensor.key) and len(matrix) == len(link.shape)
        fits = matrix == link.shape or (
            padded and matrix[0] >= link.shape[0] and matrix[1:] == link.shape[1:]
        )
        if not fits or any(i >= n for i, n in zip(index, tensor.shape, strict=False)):
            wanted = (*(f">{i}" for i in index), *map(str, link.shape))
            raise MappingError(
                f"{self.path}: {tensor.key} has the shape {list(tensor.shape)}, but the model "
                f"needs [{', '.join(wanted)}]; the checkpoint belongs to another configuration."
            )
        return self.matrix_at(tensor, index)

    def _by_index(self, tensor: SavedTensor, leading: int) -> dict[Sizes, list[Chunk]]:
        """The chunks of each matrix of a tensor, by its index along the leading axes."""
        if (tensor.key, leading) not in self._chunks:
            found: dict[Sizes, list[Chunk]] = defaultdict(list)
            for chunk in tensor.chunks:
                spans = zip(chunk.offsets[:leading], chunk.sizes[:leading], strict=True)
                for index in product(*(range(at, at + size) for at, size in spans)):
                    found[index].append(chunk)
            self._chunks[tensor.key, leading] = found
        return self._chunks[tensor.key, leading]

    def _region(self, tensor: SavedTensor, chunk: Chunk, index: Sizes) -> Region:
        leading, item = len(index), dtypes.item_size(tensor.dtype)
        rows, columns = matrix_size(chunk.sizes[leading:])
        before = 0
        for at, start, size in zip(index, chunk.offsets, chunk.sizes, strict=False):
            before = before * size + at - start
        row, column = self._corner(tensor, chunk, leading)
        offset = self.data_offset(tensor, chunk) + before * rows * columns * item
        return Region(row, column, packed(chunk.record.file, offset, rows, columns, item))

    def _corner(self, tensor: SavedTensor, chunk: Chunk, leading: int) -> tuple[int, int]:
        """Row and column at which a chunk begins in its matrix, whose rows are all axes but one."""
        offsets, sizes, whole = (it[leading:] for it in (chunk.offsets, chunk.sizes, tensor.shape))
        if len(offsets) < 3:
            return (*offsets, 0, 0)[0], (*offsets, 0, 0)[1]
        if sizes[1:] != whole[1:]:
            raise CheckpointError(
                f"{self.path}: {tensor.key} {list(tensor.shape)} was saved in parts of "
                f"{list(chunk.sizes)}, which are no rows of it; save it in one process."
            )
        return offsets[0] * prod(whole[1:-1]), 0

    def _check_complete(
        self, tensor: SavedTensor, matrix: Sizes, regions: tuple[Region, ...]
    ) -> None:
        rows, columns = matrix_size(matrix)
        overlap = any(_overlap(a, b) for a, b in combinations(regions, 2))
        if overlap or sum(region.view.elements for region in regions) != rows * columns:
            raise CheckpointError(
                f"{self.path}: the saved parts of {tensor.key} {list(tensor.shape)} do not cover "
                "the whole tensor exactly; the checkpoint is incomplete."
            )

    def data_offset(self, tensor: SavedTensor, chunk: Chunk) -> int:
        """Offset of a chunk's first element in its file.

        Raises:
            CheckpointError: Its record is damaged, or names code to execute.
        """
        item = dtypes.item_size(tensor.dtype)
        record = self._read_record(chunk.record, tensor.key)
        what = f"{self.path / self.files[chunk.record.file]}: {tensor.key} at {chunk.offsets}"
        key = (record.pickle, chunk.sizes)
        if key not in self._checked:
            self._checked[key] = _first_element(load_inert(record.pickle, what), chunk.sizes, what)
        first = self._checked[key] * item
        nbytes = prod(chunk.sizes) * item
        if len(record.data) != 1 or first + nbytes > record.data[0][1]:
            raise CheckpointError(f"{what}: its record is too small; the checkpoint is damaged.")
        return record.data[0][0] + first

    def _read_record(self, where: ByteRange, key: str) -> Record:
        what = f"{self.path / self.files[where.file]}: {key}"
        return read_record(self._descriptor(where.file), where.offset, where.length, what)

    def _descriptor(self, file: int) -> int:
        path = self.path / self.files[file]
        if file not in self._descriptors:
            try:
                self._descriptors[file] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        return self._descriptors[file]


def _overlap(a: Region, b: Region) -> bool:
    rows = a.row < b.row + b.view.rows and b.row < a.row + a.view.rows
    return rows and a.column < b.column + b.view.columns and b.column < a.column + a.view.columns


def _first_element(description: Any, sizes: Sizes, what: str) -> int:
    """Index of the first element of a pickled tensor in its storage."""
    if isinstance(description, Inert) and type(description).__name__ == "_rebuild_parameter":
        description = description.arguments[0]
    if not isinstance(description, Inert) or not type(description).__name__.startswith("_rebuild"):
        raise CheckpointError(f"{what}: its record holds no tensor; the checkpoint is damaged.")
    _, first, shape, strides = description.arguments[:4]
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise CheckpointError(f"{what}: it was saved transposed, which is not supported.")
        step *= size
    if tuple(shape) != sizes or not isinstance(first, int) or first < 0:
        raise CheckpointError(
            f"{what}: its record has the shape {list(shape)}, but {list(sizes)} is needed; the "
            "checkpoint is damaged."
        )
    return first

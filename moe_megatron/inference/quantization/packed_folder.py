"""Writes a model folder with packed experts, one expert after the other.

Everything but the experts is copied byte by byte. Memory is that of one expert, whatever the size
of the model, and the folder appears whole or not at all.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.checkpoint.formats import dtypes, side_files
from moe_megatron.checkpoint.formats.byte_ranges import BUFFER_BYTES, read_into
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, INDEX, HfFolder, TensorInfo
from moe_megatron.checkpoint.formats.hf_writer import NewTensor, Shard, index_text, lay_out
from moe_megatron.checkpoint.integrity.seal import seal
from moe_megatron.checkpoint.progress import show_progress
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.families import Family, Geometry, family_of
from moe_megatron.files import publishing
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization import names
from moe_megatron.inference.quantization.methods import Method, Quantized
from moe_megatron.inference.quantization.packed_config import KEY, quantization_config
from moe_megatron.inference.quantization.packing import pack, pack_zeros
from moe_megatron.inference.quantization.precision import Precision, check_shape
from moe_megatron.inference.store.hugging_face import HuggingFaceStore

Part = tuple[int, str]
"""A tensor of an expert: the number of its projection, and the end of its name."""
_LM_HEAD = "lm_head"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Bytes of the weights before and after."""

    experts_before: int
    experts_after: int
    others: int
    """Of everything that is not an expert, before and after."""


class Unpacked:
    """A folder whose experts can be quantized.

    Raises:
        CheckpointError: It is damaged, quantized already, or its experts cannot be read.
        MappingError: There is no table for its family.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if KEY in HfFolder(path, quantized=True).config:
            raise CheckpointError(
                f"{path} has been quantized already (its config.json has {KEY}), and weights are "
                "rounded once; give the folder from before."
            )
        self.folder = HfFolder(path)
        self.family: Family = family_of(self.folder.config)
        self.geometry: Geometry = self.family.geometry(self.folder.config, self.folder.tensors)
        self.store = HuggingFaceStore(path)
        self.projections = names.projections(self.family, self.geometry)

    @property
    def keys(self) -> list[Key]:
        """All experts."""
        return sorted(self.store.keys)

    def expert(self, key: Key) -> tuple[Tensor, Tensor]:
        """Both matrices of an expert."""
        memory = torch.empty(self.store.nbytes, dtype=torch.uint8)
        self.store.read_into(key, memoryview(memory.numpy()))
        numbers = memory.view(dtypes.to_torch(self.store.dtype))
        (rows, columns), second = self.store.shapes
        first = rows * columns
        return numbers[:first].view(rows, columns), numbers[first:].view(second)

    def others(self) -> dict[str, TensorInfo]:
        """What is copied, by the names that it gets."""
        pairs = zip(
            self.family.links_of(self.geometry, self.folder.tensors),
            self.family.links(self.geometry),
            strict=True,
        )
        renamed: dict[str, str] = {}
        of_experts = set()
        for here, there in pairs:
            if (here.layer, here.expert) in self.projections:
                of_experts |= {block.name for block in here.blocks}
            else:
                both = zip(here.blocks, there.blocks, strict=True)
                renamed |= {old.name: new.name for old, new in both}
        return {
            renamed.get(name, name): tensor
            for name, tensor in self.folder.tensors.items()
            if name not in of_experts
        }


def write_packed(
    model: Unpacked,
    target: Path,
    method: Method,
    precisions: Mapping[Key, Precision],
    *,
    method_name: str,
    overwrite: bool = False,
    progress: bool = True,
) -> Sizes:
    """Write a folder.

    Args:
        model: Where the weights are.
        target: The new folder.
        method: How a matrix is quantized.
        precisions: Of every expert.
        method_name: For people.
        overwrite: Whether a folder that is there may be replaced.
        progress: Whether progress is shown on stderr.

    Raises:
        CheckpointError: The source cannot be read, or the target must not be replaced.
        ConfigError: Groups do not fill the matrices.
        DataError: The target cannot be written.
    """
    check_apart(target, model.path)
    check_free(target, overwrite=overwrite)
    for wanted in set(precisions.values()):
        for shape in model.store.shapes:
            check_shape(shape, wanted)
    writer = _Writer(model, method, precisions)
    with publishing(target) as partial:
        partial.mkdir()
        with show_progress("quantize", writer.nbytes, enabled=progress) as advance:
            for shard in writer.shards:
                with (partial / shard.name).open("wb") as file:
                    file.write(shard.header)
                    for chunk in writer.chunks(shard):
                        file.write(chunk)
                        advance(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
        for name, content in (*side_files.between_hugging_face(model.path), *writer.tables):
            (partial / name).write_bytes(content())
        config = dict(model.folder.config)
        config[KEY] = quantization_config(
            sorted(set(precisions.values()), key=str),
            writer.ignored(),
            outliers=writer.outliers,
            method=method_name,
        )
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        seal(partial)
    return writer.sizes


class _Writer:
    """The tensors of the new folder, in the order in which they are written."""

    def __init__(
        self, model: Unpacked, method: Method, precisions: Mapping[Key, Precision]
    ) -> None:
        self._model, self._method, self._precisions = model, method, precisions
        self._others = model.others()
        tensors = [NewTensor(name, it.dtype, it.shape) for name, it in self._others.items()]
        some = {it: key for key, it in precisions.items()}
        samples = {it: self._quantized(key) for it, key in some.items()}
        self.outliers = any(kind == names.OUTLIERS for it in samples.values() for _, kind in it)
        self._place: dict[str, tuple[Key, Part]] = {}
        for key in model.keys:
            for part, numbers in samples[precisions[key]].items():
                name = model.projections[key][part[0]].module + part[1]
                tensors.append(NewTensor(name, _dtype(numbers), tuple(numbers.shape)))
                self._place[name] = key, part
        self.shards = lay_out(tensors)
        self.tables: list[tuple[str, Callable[[], bytes]]] = (
            [(INDEX, lambda: index_text(self.shards).encode())] if len(self.shards) > 1 else []
        )
        self.nbytes = sum(it.nbytes for it in tensors)
        others = sum(it.nbytes for it in self._others.values())
        self.sizes = Sizes(
            experts_before=len(model.keys) * model.store.nbytes,
            experts_after=self.nbytes - others,
            others=others,
        )

    def chunks(self, shard: Shard) -> Iterator[memoryview]:
        """The bytes of a file after its header."""
        current: Key | None = None
        parts: dict[Part, Tensor] = {}
        for tensor, _ in shard.tensors:
            if tensor.name not in self._place:
                yield from self._copied(self._others[tensor.name])
                continue
            key, part = self._place[tensor.name]
            if key != current:
                current, parts = key, self._quantized(key)
            numbers = parts[part]
            if (_dtype(numbers), tuple(numbers.shape)) != (tensor.dtype, tensor.shape):
                raise ConfigError(
                    f"the method gave {tensor.name} as {_dtype(numbers)} {tuple(numbers.shape)}, "
                    f"and {tensor.dtype} {tensor.shape} for another expert of the same precision; "
                    "types and shapes must not depend on the weights."
                )
            yield memoryview(numbers.flatten().view(torch.uint8).numpy())

    def ignored(self) -> list[str]:
        """Modules with matrices that were not quantized."""
        modules = {
            name.removesuffix(".weight")
            for name, tensor in self._others.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and "embed" not in name
        }
        return sorted(modules | {_LM_HEAD})

    def _copied(self, tensor: TensorInfo) -> Iterator[memoryview]:
        path = self._model.path / tensor.file
        with path.open("rb") as file:
            at, end = tensor.offset, tensor.offset + tensor.nbytes
            while at < end:
                buffer = memoryview(bytearray(min(BUFFER_BYTES, end - at)))
                if read_into(file.fileno(), at, buffer) < len(buffer):
                    raise CheckpointError(f"{path} became shorter while it was read.")
                yield buffer
                at += len(buffer)

    def _quantized(self, key: Key) -> dict[Part, Tensor]:
        """The tensors of an expert in the order of the file: what is read together adjoins."""
        wanted, matrices = self._precisions[key], self._model.expert(key)
        kinds: dict[str, list[tuple[int, Tensor]]] = {}
        for number, it in enumerate(self._model.projections[key]):
            rows = matrices[it.matrix][it.start : it.start + it.rows]
            if not bool(torch.isfinite(rows).all()):
                raise CheckpointError(
                    f"{self._model.path}: {it.module} has NaN or infinities, and no whole number "
                    "is near those."
                )
            for kind, numbers in _tensors(self._method(rows, wanted), wanted).items():
                kinds.setdefault(kind, []).append((number, numbers))
        return {(number, kind): it for kind, them in kinds.items() for number, it in them}


def _tensors(quantized: Quantized, precision: Precision) -> dict[str, Tensor]:
    found = {
        names.PACKED: pack(quantized.codes, precision.bits),
        names.SCALE: quantized.scales,
    }
    if quantized.zeros is not None:
        found[names.ZERO_POINT] = pack_zeros(quantized.zeros, precision.bits)
    if quantized.outliers is not None:
        found[names.OUTLIER_INDEX] = quantized.outliers.index
        found[names.OUTLIERS] = quantized.outliers.values
    return found | {names.SHAPE: torch.tensor(quantized.codes.shape)}


def _dtype(numbers: Tensor) -> str:
    found = dtypes.from_torch_name(str(numbers.dtype).removeprefix("torch."))
    assert found is not None
    return found

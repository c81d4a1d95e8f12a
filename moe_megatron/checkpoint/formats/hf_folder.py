"""A Hugging Face model folder: its configuration and the position of each tensor, from headers.

Everything in the folder is treated as untrusted: sizes are checked against the files, and an index
must not point outside the folder. It reads no weights and knows no families.
"""

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.own_files import LONGEST_NAME, check_no_pointer, check_own
from moe_megatron.checkpoint.formats.quantized import refuse_quantized
from moe_megatron.config.checkpoint_files import instead_of_model
from moe_megatron.config.checks import first_few
from moe_megatron.errors import CheckpointError
from moe_megatron.families.hf_config import shown
from moe_megatron.reading import open_regular, parse_json, read_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"

_POINTER_BYTES = 64
_MOST_AXES = 16
_MAX_HEADER = 100 * 2**20
"""Bytes; the limit of the safetensors format."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and its position."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    """Name of its file in the folder."""
    offset: int
    """Offset of its first byte in the file."""
    nbytes: int


class HfFolder:
    """Configuration and headers of a model folder.

    Args:
        path: The folder.
        quantized: Whether weights may be quantized in a way that no conversion reads.

    Raises:
        CheckpointError: The folder is incomplete, or a file in it is damaged; the message names the
            file and, if known, the tensor.
    """

    def __init__(self, path: Path, *, quantized: bool = False) -> None:
        self.path = path
        self.config = _read_config(path)
        self.tensors: dict[str, TensorInfo] = {}
        for file, expected in _shards(path).items():
            check_own(path / file, path)
            self._add(file, expected)
        if not quantized:
            refuse_quantized(path, self.config, self.tensors)

    def _add(self, file: str, expected: frozenset[str] | None) -> None:
        found = read_header(self.path / file)
        if expected is not None and (absent := sorted(expected - found.keys())):
            raise CheckpointError(
                f"{self.path / INDEX} lists {first_few(absent, 3)} in {file}, which does not "
                f"contain {'it' if len(absent) == 1 else 'them'}; download the folder again."
            )
        for name, tensor in found.items():
            if name in self.tensors:
                raise CheckpointError(
                    f"{self.path} holds the tensor {name} twice, in {self.tensors[name].file} and "
                    f"in {file}; remove the file that does not belong to this model."
                )
            self.tensors[name] = tensor


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, in the order of the file.

    Raises:
        CheckpointError: The file is truncated, or its header is invalid.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 2 <= length <= min(size - 8, _MAX_HEADER) else b""
            file.seek(0)
            check_no_pointer(path, file.read(_POINTER_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) < 2 or len(text) != length:
        raise CheckpointError(
            f"{path} ({size} bytes) is not a complete safetensors file: its header should be "
            f"{length} bytes long; download it again."
        )
    header = _parse(path, text)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _check_ranges(path, list(tensors.values()), 8 + length, size)
    return tensors


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(
                f"{path}: the header names {first_few(twice, 3)} twice; it is damaged."
            )
        return seen

    header = _json(path, text, "its header", no_duplicates)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a table of tensors; download it again.")
    return header


def _json(path: Path, text: bytes, what: str, hook: Any = None) -> Any:
    try:
        return parse_json(text, hook)
    except ValueError as error:
        raise CheckpointError(f"{path}: {what} is not JSON ({error}); download it again.") from None


def _tensor(path: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    if len(name) > LONGEST_NAME:
        raise CheckpointError(
            f"{path}: a tensor has a name of {len(name):,} characters ({name[:40]}...), which no "
            "model has; download the file again."
        )

    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name} {what}; download the file again.")

    if not isinstance(entry, dict):
        raise broken("has no description in the header")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not dtypes.is_known(dtype):
        raise broken(f"has the unknown type {shown(dtype)}")
    if not _is_list_of_sizes(shape):
        raise broken(f"has the impossible shape {shown(shape)}")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"has the impossible offsets {shown(offsets)}")
    if len(shape) > _MOST_AXES:
        raise broken(f"has {len(shape):,} axes, more than any weight has")
    nbytes = prod(shape) * dtypes.item_size(dtype)
    if offsets[1] - offsets[0] != nbytes:
        raise broken(
            f"of shape {shown(shape)} and type {dtype} needs {nbytes} bytes but has "
            f"{offsets[1] - offsets[0]}"
        )
    if data + offsets[1] > size:
        raise broken(f"ends at byte {data + offsets[1]} of a file of {size} bytes: it is truncated")
    return TensorInfo(name, dtype, tuple(shape), path.name, data + offsets[0], nbytes)


def _is_list_of_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**62 for v in value)


def _check_ranges(path: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    """Check that the tensors fill the file without gaps and overlaps."""
    end = data
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            what = "overlaps another one" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {tensor.name} {what}; download the file again.")
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(
            f"{path} should end at byte {end} but has {size} bytes; download it again."
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds {CONFIG}.")
    try:
        text = read_bytes(path)
        check_own(path, folder)
        check_no_pointer(path, text)
        config = _json(path, text, "the file")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {CONFIG}; {instead_of_model(folder)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a configuration: it must be a JSON object.")
    return config


def _shards(folder: Path) -> dict[str, frozenset[str] | None]:
    """The files with weights, and the tensors that the index lists for each; None without one."""
    if os.path.lexists(folder / INDEX):
        return _indexed_shards(folder)
    if os.path.lexists(folder / SINGLE):
        return {SINGLE: None}
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if others:
        raise CheckpointError(
            f"{folder} holds {first_few(others, 3)} but neither {INDEX} nor {SINGLE}; download the "
            "index."
        )
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
    hint = (
        " Its weights are pickled (*.bin), and reading those can execute code; save them as "
        "safetensors (save_pretrained does)."
        if pickled
        else ""
    )
    raise CheckpointError(f"{folder} holds no *.safetensors file.{hint}")


def _indexed_shards(folder: Path) -> dict[str, frozenset[str] | None]:
    path = folder / INDEX
    try:
        index = _json(path, read_bytes(path), "the index")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    check_own(path, folder)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; download it again.")
    by_file: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not _is_name(file):
            raise CheckpointError(
                f"{path} says that {shown(name, quoted=False)} is in {shown(file)}, which is not "
                "a file of this folder; files outside it are not read."
            )
        by_file.setdefault(file, set()).add(name)
    for file in by_file:
        _check_inside(folder, file)
    return {file: frozenset(names) for file, names in sorted(by_file.items())}


def _is_name(file: object) -> TypeGuard[str]:
    if not isinstance(file, str) or not 0 < len(file.encode()) <= LONGEST_NAME:
        return False
    return file == os.path.basename(file) and "\0" not in file


def _check_inside(folder: Path, file: str) -> None:
    path = folder / file
    if file in {".", ".."} or path.is_dir():
        raise CheckpointError(f"{folder / INDEX} names {file}, which is a folder.")
    if not path.exists():
        raise CheckpointError(f"{path} is missing, although {INDEX} names it; download it.")

"""Proves that the tensors which an import leaves out hold nothing of their own.

A copy must repeat the bytes of the other tensor, and rotary frequencies must be those of the
configuration. transformers drops such tensors without looking; here a tied output projection that
differs from the embedding is a reason to refuse.
"""

import struct
from collections.abc import Iterable, Iterator

from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.errors import MappingError
from moe_megatron.families.redundant import Redundant
from moe_megatron.reading import open_regular

_BLOCK = 16 * 2**20
_PRECISION = {"F64": 1e-5, "F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}
"""Relative error of a saved frequency: rounding to its type, and a power computed in float32."""
_FORMATS = {"F64": "d", "F32": "f", "F16": "e"}


def check_redundant(folder: HfFolder, used: Iterable[str], redundant: Iterable[Redundant]) -> None:
    """Prove that each tensor that nothing uses is redundant.

    Args:
        folder: The source.
        used: Names of the tensors that are read.
        redundant: The tensors that may be left out.

    Raises:
        MappingError: A tensor holds something else than it should repeat.
    """
    left = folder.tensors.keys() - set(used)
    kinds = tuple(redundant)
    for name in sorted(left):
        kind = next((kind for kind in kinds if kind.matches(name)), None)
        if kind is None:
            continue  # coverage has refused it, or it belongs to another one
        if kind.frequencies is not None:
            _check_frequencies(folder, folder.tensors[name], *kind.frequencies)
        else:
            _check_copy(folder, folder.tensors[name], folder.tensors.get(kind.copy_of), kind)


def _check_copy(
    folder: HfFolder, tensor: TensorInfo, origin: TensorInfo | None, kind: Redundant
) -> None:
    same = origin is not None and (tensor.dtype, tensor.shape) == (origin.dtype, origin.shape)
    if origin is not None and same:
        pairs = zip(_blocks(folder, tensor), _blocks(folder, origin), strict=True)
        same = all(one == other for one, other in pairs)
    if not same:
        raise MappingError(
            f"{folder.path}: {tensor.name} differs from {kind.copy_of}, although config.json says "
            "that they are one (tie_word_embeddings); its weights would be lost. Set "
            "tie_word_embeddings to false if they are two, or remove the tensor."
        )


def _check_frequencies(folder: HfFolder, tensor: TensorInfo, base: float, width: int) -> None:
    expected = [base ** (-2 * index / width) for index in range(width // 2)]
    allowed = _PRECISION.get(tensor.dtype)
    found = list(_numbers(folder, tensor)) if tensor.shape == (len(expected),) else []
    if allowed is None or len(found) != len(expected):
        close = False
    else:
        pairs = zip(found, expected, strict=True)
        close = all(abs(one - other) <= allowed * other for one, other in pairs)
    if not close:
        raise MappingError(
            f"{folder.path}: {tensor.name} does not hold the rotary frequencies of config.json "
            f"(base {base:g}, {width} features); positions would be computed differently. Take the "
            "config.json that belongs to the weights."
        )


def _numbers(folder: HfFolder, tensor: TensorInfo) -> Iterator[float]:
    data = b"".join(_blocks(folder, tensor))
    if tensor.dtype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    letter = _FORMATS.get(tensor.dtype, "f")
    yield from struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)


def _blocks(folder: HfFolder, tensor: TensorInfo) -> Iterator[bytes]:
    with open_regular(folder.path / tensor.file) as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left and (block := file.read(min(left, _BLOCK))):
            left -= len(block)
            yield block

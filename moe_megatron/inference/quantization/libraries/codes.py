"""The numbers that a library rounded an expert's weights to, from its folder.

Each format packs 4-bit codes into words of 32 bits, the first code in the lowest bits; GPTQ puts
those of a column into one word, compressed-tensors those of a row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import TensorInfo
from moe_megatron.errors import CheckpointError
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization.libraries.export import Export, role_of
from moe_megatron.inference.quantization.libraries.layouts import GPTQ, WORD
from moe_megatron.inference.quantization.libraries.library import LibraryMethod
from moe_megatron.inference.quantization.methods import Quantized, dequantized
from moe_megatron.inference.quantization.names import Projection
from moe_megatron.inference.quantization.packed_folder import Unpacked
from moe_megatron.inference.quantization.precision import Precision

_BITS, _ZERO = 4, 8
"""A code c stands for c - 8."""
_FARTHEST = 0.5
"""Of rounded weights from those before, as a part of these. 4 bits have about 0.1; of two matrices
that have nothing to do with each other, one is more than 1 from the other."""


class Rounded(Unpacked):
    """The source, of which a library has rounded the experts.

    Its `method` gives what the library found for the matrix that it is asked for. A method is told
    no name: it counts, since a writer asks for an expert and then for its projections in order.
    """

    def __init__(self, source: Unpacked, export: Export, by: LibraryMethod) -> None:
        super().__init__(source.path)
        self._export, self._by = export, by
        self._next: Iterator[Projection] = iter(())

    def expert(self, key: Key) -> tuple[Tensor, Tensor]:
        """Both matrices of an expert, as they were; what `method` gives next is of them."""
        self._next = iter(self.projections[key])
        return super().expert(key)

    def method(self, matrix: Tensor, precision: Precision) -> Quantized:
        """What the library made of the next projection."""
        place = next(self._next)
        role = role_of(place.module)
        assert role is not None
        assert matrix.shape == (place.rows, place.columns)
        module = self._export.modules[role]
        codes, scales = (_gptq if self._by.layout is GPTQ else _pack_quantized)(
            self, module, place, precision
        )
        if not bool(torch.isfinite(scales).all()):
            raise CheckpointError(f"{self._export.folder.path}: scales of {module} have NaN.")
        found = Quantized(codes, scales.to(matrix.dtype))
        if not self._by.rescaled:
            self._check_near(module, dequantized(found).float(), matrix.float())
        return found

    def _check_near(self, module: str, found: Tensor, matrix: Tensor) -> None:
        """Refuse another matrix, as where a library takes one of an expert's for the other."""
        far = float((found - matrix).norm() / matrix.norm().clamp(min=1e-30))
        if far > _FARTHEST:
            raise CheckpointError(
                f"{self._by.library.title} wrote a {module} that is not near the one that it was "
                f"given ({far:.2f} of its size away): the names of two matrices may be exchanged. "
                "Its folder is not kept; the model is as it was."
            )

    def part(self, name: str) -> Tensor:
        """A tensor of the library's folder."""
        return read_tensor(self._export, self._export.folder.tensors[name])


def read_tensor(export: Export, tensor: TensorInfo) -> Tensor:
    """The numbers of a tensor.

    Raises:
        CheckpointError: The file became shorter.
    """
    path = export.folder.path / tensor.file
    with path.open("rb") as file:
        file.seek(tensor.offset)
        data = bytearray(file.read(tensor.nbytes))
    if len(data) < tensor.nbytes:
        raise CheckpointError(f"{path} became shorter while it was read.")
    return torch.frombuffer(data, dtype=dtypes.to_torch(tensor.dtype)).view(tensor.shape)


def unpacked(words: Tensor) -> Tensor:
    """Codes of words along the last axis: int8 [..., 8 n], from 0 to 15, of int32 [..., n]."""
    shifts = torch.arange(0, WORD, _BITS, dtype=torch.int32)
    codes: Tensor = (words[..., None] >> shifts) & (2**_BITS - 1)
    return codes.flatten(-2).to(torch.int8)


def _gptq(
    model: Rounded, module: str, place: Projection, precision: Precision
) -> tuple[Tensor, Tensor]:
    group = precision.group_size
    assert group is not None
    order = torch.arange(place.columns) // group
    if not torch.equal(model.part(f"{module}.g_idx").long(), order):
        raise CheckpointError(
            f"{module}: its columns are in groups by their importance (g_idx), which is not read "
            "here; quantize without desc_act."
        )
    zeros = unpacked(model.part(f"{module}.qzeros"))
    if not bool(((zeros == _ZERO - 1) | (zeros == _ZERO)).all()):
        raise CheckpointError(f"{module}: its zero is not in the middle; quantize with sym=True.")
    codes = unpacked(model.part(f"{module}.qweight").T.contiguous()) - _ZERO
    return codes, model.part(f"{module}.scales").T.contiguous()


def _pack_quantized(
    model: Rounded, module: str, place: Projection, precision: Precision
) -> tuple[Tensor, Tensor]:
    codes = unpacked(model.part(f"{module}.weight_packed")) - _ZERO
    return codes, model.part(f"{module}.weight_scale")

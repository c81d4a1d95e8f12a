"""Reads whole matrices of either side into memory, and changes them in a Hugging Face folder."""

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.execute.compute import Read, load, unpacked
from moe_megatron.checkpoint.formats import byte_ranges, dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.plan import blocks
from moe_megatron.checkpoint.plan.importing import exponents_of, is_packed
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import Link, matrix_size

if TYPE_CHECKING:
    from torch import Tensor


def read_matrix(link: Link, folder: HfFolder) -> "Tensor":
    """The matrix of a link from a Hugging Face folder, in the link's shape.

    Args:
        link: A link whose blocks are in the folder. 8-bit weights are returned unscaled, 4-bit
            weights as float32.
        folder: The folder.
    """
    import torch

    columns = matrix_size(link.shape)[1]
    parts = []
    for _, _, block in blocks.rows_of(link):
        tensor = folder.tensors[block.name]
        view = blocks.view_of(block, columns, 0, tensor.offset, tensor.dtype)
        part = _loaded(view, tensor, folder)
        if is_packed(tensor):
            exponents = exponents_of(tensor, folder)
            at = blocks.exponents_of(view, tensor, exponents, 0)
            part = unpacked(part, _loaded(at, exponents, folder))
        parts.append(part)
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(link.shape)


def write_matrix(link: Link, folder: HfFolder, matrix: "Tensor") -> None:
    """Write the matrix of a link over that of a Hugging Face folder, in place.

    Args:
        link: A link whose blocks are in the folder, in floating-point numbers.
        folder: The folder; only its files that hold this matrix change.
        matrix: [rows, columns]; it is cast to the type of the file.
    """
    columns = matrix_size(link.shape)[1]
    for row, rows, block in blocks.rows_of(link):
        tensor = folder.tensors[block.name]
        view = blocks.view_of(block, columns, 0, tensor.offset, tensor.dtype)
        with (folder.path / tensor.file).open("r+b") as file:
            _store(matrix[row : row + rows], view, tensor.dtype, file.fileno())


def _store(part: "Tensor", view: View, dtype: str, descriptor: int) -> None:
    import torch

    item = dtypes.item_size(dtype)
    steps = (view.row_step // item, view.column_step // item)
    count = (view.rows - 1) * steps[0] + (view.columns - 1) * steps[1] + 1
    mapped = mmap.mmap(descriptor, 0)
    into = torch.frombuffer(mapped, dtype=dtypes.to_torch(dtype), count=count, offset=view.offset)
    into.as_strided((view.rows, view.columns), steps).copy_(part)
    del into  # or the file would stay mapped
    mapped.close()


def _loaded(view: View, tensor: TensorInfo, folder: HfFolder) -> "Tensor":
    path = folder.path / tensor.file
    with path.open("rb") as file:
        return load(view, tensor.dtype, _reader(file.fileno(), path))


def _reader(descriptor: int, path: Path) -> Read:
    def read(_: int, offset: int, into: memoryview) -> None:
        count = byte_ranges.read_into(descriptor, offset, into)
        if count < len(into):
            raise CheckpointError(
                f"{path} ends at byte {offset + count} and was longer before; wait until nothing "
                "writes to it and start again."
            )

    return read


def read_saved_matrix(link: Link, saved: TorchDist) -> "Tensor | None":
    """The matrix of a link from a Megatron checkpoint; None if it has none.

    Raises:
        CheckpointError: Its records are damaged.
    """
    import torch

    found = saved.find(link)
    if found is None:
        return None
    rows, columns = matrix_size(link.shape)
    height = max(region.row + region.view.rows for region in found.regions)
    matrix: Tensor | None = None
    for region in found.regions:
        path = saved.path / saved.files[region.view.file]
        with path.open("rb") as file:
            part = load(region.view, found.tensor.dtype, _reader(file.fileno(), path))
        if matrix is None:
            matrix = torch.empty(height, columns, dtype=part.dtype)
        into = matrix[region.row :, region.column :]
        into[: part.shape[0], : part.shape[1]] = part
    assert matrix is not None
    return matrix[:rows].reshape(link.shape)  # without the padding of a vocabulary

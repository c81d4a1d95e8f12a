"""Turns the blocks of a link into views, and finds the rows of the matrix that each block fills."""

from collections.abc import Iterator

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import TensorInfo
from moe_megatron.checkpoint.formats.view import View, packed
from moe_megatron.checkpoint.plan.coverage import elements
from moe_megatron.errors import MappingError
from moe_megatron.families.links import PACKED, Block, Link, Transform, matrix_size

_SECOND = {Transform.ODD, Transform.TRANSPOSE_ODD, Transform.FP4_ODD}
_EVERY_SECOND = {Transform.TRANSPOSE_EVEN, Transform.TRANSPOSE_ODD}


def rows_of(link: Link) -> Iterator[tuple[int, int, Block]]:
    """For each block of a link: its first row in the matrix, its number of rows, and the block."""
    columns, row = matrix_size(link.shape)[1], 0
    for block in link.blocks:
        rows, rest = divmod(elements(block), columns)
        if rest:
            raise MappingError(
                f"the mapping of {link.key} takes a fraction of a row from {block.name}; its table "
                "is wrong."
            )
        yield row, rows, block
        row += rows


def view_of(block: Block, columns: int, file: int, offset: int, dtype: str) -> View:
    """The view of a block as rows of its link's matrix, with the block's transform applied.

    Args:
        block: The block.
        columns: Number of columns of the link's matrix.
        file: Index of the file that holds the tensor.
        offset: Offset of the tensor in the file.
        dtype: Type of the tensor.

    Raises:
        MappingError: A view cannot express the block with so many columns.
    """
    item, width = dtypes.item_size(dtype), matrix_size(block.shape)[1]
    view = packed(file, offset + block.start * width * item, block.rows, width, item)
    if block.transform in PACKED:
        return _packed_view(view, block, columns)
    if block.columns is not None:
        view = view.part(0, block.rows, *block.columns)
    second = int(block.transform in _SECOND)
    if block.transform in {Transform.EVEN, Transform.ODD}:
        line = packed(file, view.offset, 1, view.elements, item)
        return line.every_second_column(second).transposed()
    if block.transform in _EVERY_SECOND:
        view = view.every_second_column(second).transposed()
    elif block.transform is Transform.TRANSPOSE:
        view = view.transposed()
    folded = view.folded(columns, item)
    if folded is None:
        raise MappingError(
            f"the mapping reads {block.name} as rows of {columns}; the table of this family is "
            "wrong."
        )
    return folded


def _packed_view(view: View, block: Block, columns: int) -> View:
    """The bytes of 4-bit numbers, two of which make up each: half as many columns."""
    rows = view.folded(columns // 2, 1)
    assert rows is not None, "4-bit numbers are stored row by row"
    if block.transform is Transform.FP4:
        return rows
    return rows.transposed().every_second_column(int(block.transform in _SECOND)).transposed()


def exponents_of(view: View, tensor: TensorInfo, exponents: TensorInfo, file: int) -> View:
    """The exponents of 4-bit numbers, one for each 32 of them.

    Args:
        view: Rows of the numbers, as `view_of` gives them.
        tensor: The tensor that holds the numbers.
        exponents: The tensor that holds their exponents.
        file: Index of its file.
    """
    width = exponents.shape[-1]
    row_bytes = view.columns
    first, step = (view.offset - tensor.offset) // row_bytes, view.row_step // row_bytes
    start = exponents.offset + first * width
    return View(file, start, view.rows, width, step * width, 1)

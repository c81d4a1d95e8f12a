"""From links to views: the rows of a matrix that a block of a Hugging Face tensor makes up."""

from collections.abc import Iterator

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.view import View, packed
from moe_megatron.checkpoint.plan.coverage import elements
from moe_megatron.errors import MappingError
from moe_megatron.families.links import Block, Link, Transform, matrix_size

_SECOND = {Transform.ODD, Transform.TRANSPOSE_ODD}
_EVERY_SECOND = {Transform.TRANSPOSE_EVEN, Transform.TRANSPOSE_ODD}


def rows_of(link: Link) -> Iterator[tuple[int, int, Block]]:
    """First row, number of rows, and block of each part of a link's matrix."""
    columns, row = matrix_size(link.shape)[1], 0
    for block in link.blocks:
        rows, rest = divmod(elements(block), columns)
        if rest:
            raise MappingError(
                f"the mapping gives {link.key} no whole rows of {block.name}; its table is wrong."
            )
        yield row, rows, block
        row += rows


def view_of(block: Block, columns: int, file: int, offset: int, dtype: str) -> View:
    """A block of a tensor, turned as its link sees it.

    Args:
        block: The block.
        columns: Those of the link's matrix.
        file: Number of the file that holds the tensor.
        offset: Of the tensor in the file.
        dtype: Of the tensor.

    Raises:
        MappingError: The block is no such matrix.
    """
    item, width = dtypes.item_size(dtype), matrix_size(block.shape)[1]
    view = packed(file, offset + block.start * width * item, block.rows, width, item)
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

"""Tasks that need more than copying: transposing, casting, dequantising, weighted sums, noise.

One task is one tile of a few megabytes, so that memory use stays constant.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.view import View
from moe_megatron.checkpoint.plan.tasks import Exponents, Move, Scale, Task
from moe_megatron.families.links import Noise

if TYPE_CHECKING:
    import torch

Read = Callable[[int, int, memoryview], None]
"""Fills a buffer with the bytes at an offset of a source file."""

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of 4 bits: one of sign, two of exponent, one of mantissa (E2M1)."""
_E8M0_BIAS, _INFINITE = 127, 255
_SMALL = 64 * 1024
"""Up to this many bytes are read at once, even if few of them are needed."""


def compute(task: Task, read: Read) -> bytearray:
    """The bytes that a task writes.

    Args:
        task: A task with moves.
        read: Reads the source files.
    """
    import torch

    out = bytearray(task.nbytes)
    whole = torch.frombuffer(out, dtype=dtypes.to_torch(task.dtype))
    into = whole
    if any(move.weight is not None for move in task.moves):
        # Sums are computed in at least float32 and rounded once.
        into = torch.zeros_like(whole, dtype=torch.promote_types(whole.dtype, torch.float32))
    item = dtypes.item_size(task.dtype)
    for move in task.moves:
        view = move.target
        target = into.as_strided(
            (view.rows, view.columns),
            (view.row_step // item, view.column_step // item),
            (view.offset - task.offset) // item,
        )
        found = _source(move, read)
        if move.weight is None:
            target.copy_(found)
        else:
            target.add_(found.to(into.dtype), alpha=move.weight)
    if into is not whole:
        whole.copy_(into)
    return out


def _source(move: Move, read: Read) -> "torch.Tensor":
    if isinstance(move.source, Noise):
        return draw(move.source)
    found = load(move.source, move.dtype, read)
    if isinstance(move.scale, Exponents):
        return unpacked(found, load(move.scale.view, "U8", read))
    return found if move.scale is None else found.float() * _factors(move, move.scale, read)


def draw(noise: Noise) -> "torch.Tensor":
    """N(0, std^2), float32 [rows, columns]; each group of `repeat` rows is the same."""
    import torch
    from numpy.random import Generator, Philox

    found = torch.empty(noise.rows, noise.columns)
    for row in range(noise.rows):
        counter = [0, (noise.row + row) // noise.repeat, 0, 0]
        stream = Generator(Philox(key=[noise.seed, noise.stream], counter=counter))
        found[row] = torch.from_numpy(stream.standard_normal(noise.columns, dtype="float32"))
    return found.mul_(noise.std)


def unpacked(numbers: "torch.Tensor", exponents: "torch.Tensor") -> "torch.Tensor":
    """MXFP4 weights as float32, [rows, columns].

    Args:
        numbers: uint8 [rows, columns / 2]; the low half of a byte holds the first of two numbers.
        exponents: uint8 [rows, columns / 32].
    """
    import torch

    values = _two_of_each_byte().index_select(0, numbers.flatten().int()).view(torch.float32)
    values, powers = values.view(*exponents.shape, -1), exponents.int().unsqueeze(-1) - _E8M0_BIAS
    if int(exponents.max()) == _INFINITE:  # where 0 times the power shall be 0, which is slow
        return torch.ldexp(values, powers).flatten(-2)
    return values.mul_(torch.pow(2.0, powers)).flatten(-2)


@cache
def _two_of_each_byte() -> "torch.Tensor":
    """For each byte the bits of its two numbers as float32, together in one int64."""
    import torch

    pairs = [[_FP4[byte % 16], _FP4[byte // 16]] for byte in range(256)]
    return torch.tensor(pairs).view(torch.int64).flatten()


def _factors(move: Move, scale: Scale, read: Read) -> "torch.Tensor":
    """The scale factor of each element of a move, [rows, columns]."""
    import torch

    factors = load(scale.view, "F32", read)
    rows = (scale.row + torch.arange(move.source.rows)) // scale.block
    columns = (scale.column + torch.arange(move.source.columns)) // scale.block
    return factors[rows[:, None], columns]


def load(view: View, dtype: str, read: Read) -> "torch.Tensor":
    """The elements of a view as a matrix, [rows, columns].

    Args:
        view: The view.
        dtype: Type of the elements.
        read: Reads the file.
    """
    import torch

    turned = view.row_step < view.column_step and view.columns > 1
    far = view.transposed() if turned else view  # its row step is larger than its column step
    item = dtypes.item_size(dtype)
    width = (far.columns - 1) * far.column_step + item
    extent = (far.rows - 1) * far.row_step + width
    step = far.row_step
    if extent > max(_SMALL, 2 * far.rows * width):
        step = width
        buffer = bytearray(far.rows * width)
        lines = memoryview(buffer)
        for row in range(far.rows):
            offset = far.offset + row * far.row_step
            read(far.file, offset, lines[row * width : (row + 1) * width])
    else:
        buffer = bytearray(extent)
        read(far.file, far.offset, memoryview(buffer))
    flat = torch.frombuffer(buffer, dtype=dtypes.to_torch(dtype))
    strides = (step // item, far.column_step // item)
    matrix = flat.as_strided((far.rows, far.columns), strides)
    return matrix.T if turned else matrix

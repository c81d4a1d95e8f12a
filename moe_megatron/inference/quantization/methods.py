"""Methods: how the weights of one matrix become whole numbers.

A method sees one matrix and no data. Another one is a function:

    @register_method("mine")
    def mine(matrix: Tensor, precision: Precision) -> Quantized: ...
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError
from moe_megatron.inference.quantization.precision import Precision


@dataclass(frozen=True, slots=True)
class Outliers:
    """Weights that stay as they are."""

    index: Tensor
    """int32 [n], row * columns + column, rising."""
    values: Tensor
    """[n], in the matrix's type."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [rows, columns] as (codes - zeros) * scales."""

    codes: Tensor
    """int8 [rows, columns], from -2^(bits - 1) to 2^(bits - 1) - 1; that of 0 where an outlier
    is."""
    scales: Tensor
    """[rows, groups], in the matrix's type."""
    zeros: Tensor | None = None
    """int8 [rows, groups]: the code of 0 in each group; None, where the precision is symmetric."""
    outliers: Outliers | None = None


Method = Callable[[Tensor, Precision], Quantized]
_METHODS: dict[str, Method] = {}


def register_method(name: str) -> Callable[[Method], Method]:
    """Register a method, as a decorator."""

    def register(method: Method) -> Method:
        _METHODS[name] = method
        return method

    return register


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_METHODS)


def method_of(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _METHODS:
        raise ConfigError(
            f"method ({name!r}) must be {join_words([*_METHODS])}.{nearest(name, _METHODS)}"
        )
    return _METHODS[name]


def grouped(matrix: Tensor, precision: Precision) -> Tensor:
    """The weights of a matrix [rows, columns] by groups: float32 [rows, groups, group]."""
    rows, columns = matrix.shape
    return matrix.float().view(rows, precision.groups(columns), -1)


def extremes(groups: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """The ends of what each group's codes must reach, [rows, groups]; 0 is between them."""
    if precision.symmetric:
        largest = groups.abs().amax(-1)
        return -largest, largest
    return groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)


def zero_points(low: Tensor, high: Tensor, scales: Tensor, precision: Precision) -> Tensor:
    """The codes of 0 with which the codes lie around the middle of both ends.

    Args:
        low: [rows, groups], not above 0.
        high: [rows, groups], not below 0.
        scales: float32 [rows, groups].
        precision: How many bits.

    Returns:
        float32 [rows, groups], whole numbers.
    """
    if precision.symmetric:
        return torch.zeros_like(scales)
    most = 2 ** (precision.bits - 1)
    middle = (low + high) / 2 / _divisor(scales)
    return (-0.5 - middle).round_().clamp_(-most, most - 1)


def rounded(groups: Tensor, scales: Tensor, zeros: Tensor, precision: Precision) -> Tensor:
    """The nearest codes of weights by groups.

    Args:
        groups: float32 [rows, groups, group].
        scales: float32 [rows, groups]; where one is 0, all codes are that of 0.
        zeros: The codes of 0, [rows, groups].
        precision: How many bits.

    Returns:
        float32 [rows, groups, group], whole numbers.
    """
    most = 2 ** (precision.bits - 1)
    codes = (groups / _divisor(scales)[..., None]).round_()
    return codes.add_(zeros[..., None]).clamp_(-most, most - 1)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales)


def quantized(matrix: Tensor, scales: Tensor, zeros: Tensor, precision: Precision) -> Quantized:
    """The nearest codes of a matrix for given scales, in its type, and codes of 0."""
    codes = rounded(grouped(matrix, precision), scales.float(), zeros, precision)
    return Quantized(
        codes.to(torch.int8).view(matrix.shape),
        scales,
        None if precision.symmetric else zeros.to(torch.int8),
    )


def dequantized(found: Quantized) -> Tensor:
    """The matrix that is computed with, in the type of the scales."""
    rows, columns = found.codes.shape
    scales = found.scales
    codes = found.codes.view(rows, scales.shape[1], -1).to(scales.dtype)
    if found.zeros is not None:
        codes = codes - found.zeros.to(scales.dtype)[..., None]
    matrix = (codes * scales[..., None]).view(rows, columns)
    if found.outliers is not None:
        matrix.view(-1)[found.outliers.index.long()] = found.outliers.values
    return matrix

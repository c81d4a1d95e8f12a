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
    """A matrix [rows, columns] as numbers * scales."""

    codes: Tensor
    """int8 [rows, columns], from -2^(bits - 1) to 2^(bits - 1) - 1; 0 where an outlier is."""
    scales: Tensor
    """[rows, groups], in the matrix's type."""
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


def rounded(matrix: Tensor, scales: Tensor, precision: Precision) -> Tensor:
    """The nearest codes of a matrix for given scales; of zeros where a scale is 0.

    Returns:
        int8 [rows, columns].
    """
    most = 2 ** (precision.bits - 1)
    rows, columns = matrix.shape
    grouped = matrix.float().view(rows, scales.shape[1], -1)
    divisor = scales.float()[..., None]
    codes = grouped / torch.where(divisor == 0, 1.0, divisor)
    return codes.round_().clamp_(-most, most - 1).to(torch.int8).view(rows, columns)


def dequantized(quantized: Quantized) -> Tensor:
    """The matrix that is computed with, in the type of the scales."""
    rows, columns = quantized.codes.shape
    scales = quantized.scales
    grouped = quantized.codes.view(rows, scales.shape[1], -1).to(scales.dtype)
    matrix = (grouped * scales[..., None]).view(rows, columns)
    if quantized.outliers is not None:
        matrix.view(-1)[quantized.outliers.index.long()] = quantized.outliers.values
    return matrix

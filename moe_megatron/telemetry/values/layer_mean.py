"""A mean over steps, one value per MoE layer, that can be saved, continued and merged.

It does not know what it averages.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.json_fields import (
    Float64Array,
    Int64Array,
    read_float_array,
    read_int_array,
    require_fields,
    write_float_array,
)


@dataclass(slots=True, eq=False)
class LayerMean:
    """sum_s value_s * tokens_s / sum_s tokens_s over steps s, per layer, kept as two sums.

    Two such means merge without loss. Values that are not finite are left out together with their
    weight: one diverged step must not erase what the other steps measured.
    """

    weighted_sum: Float64Array
    tokens: Int64Array

    @classmethod
    def empty(cls, num_layers: int) -> Self:
        """A mean of `num_layers` layers that has no values yet."""
        return cls(np.zeros(num_layers), np.zeros(num_layers, dtype=np.int64))

    def add(self, values: Float64Array, tokens: int) -> None:
        """Adds the `values` [L] of a step with `tokens` tokens."""
        finite = np.isfinite(values)
        self.weighted_sum += np.where(finite, values, 0.0) * tokens
        self.tokens += np.where(finite, tokens, 0)

    def merge(self, other: Self) -> None:
        """Adds all values of `other`."""
        self.weighted_sum += other.weighted_sum
        self.tokens += other.tokens

    @property
    def value(self) -> Float64Array:
        """The mean; NaN for a layer without a finite value. [L]"""
        return self.weighted_sum / np.where(self.tokens > 0, self.tokens, np.nan)

    def to_json_dict(self) -> dict[str, Any]:
        """Returns the two sums."""
        return {
            "weighted_sum": write_float_array(self.weighted_sum),
            "tokens": self.tokens.tolist(),
        }

    @classmethod
    def from_json_dict(cls, data: object, name: str, num_layers: int) -> Self:
        """Reads what `to_json_dict` wrote; raises DataError."""
        fields = require_fields(data, ("weighted_sum", "tokens"))
        weighted_sum = read_float_array(fields["weighted_sum"], f"{name}.weighted_sum")
        tokens = read_int_array(fields["tokens"], f"{name}.tokens", ndim=1)
        if weighted_sum.shape != (num_layers,) or tokens.shape != (num_layers,):
            raise DataError(f"{name} must hold {num_layers} values, one for each layer")
        return cls(weighted_sum, tokens)

"""The most frequent tokens of each expert of a layer, in one step: ids and exact counts.

Ids say which text a model is trained on, so that they are recorded only where somebody asks. It
knows neither the texts of tokens nor how they are counted.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.json_fields import read_int, require_fields
from moe_megatron.telemetry.values.packed_tables import json_line, packed, parsed_line, unpacked

Counts = npt.NDArray[np.int32]

MOST_TOKENS = 32
"""Tokens that are kept of an expert."""
_NUMBERS = ("layer", "num_experts")
_TABLES = ("ids", "counts", "in_layer")
_ASSIGNED = "assigned"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopTokens:
    """Those of one layer, the most frequent first and, of equally frequent ones, the lowest id.

    Attributes:
        layer: its global 1-based number.
        assigned: int32 [E], assignments of any token that reached each expert.
        ids: int32 [E, K] with K = `MOST_TOKENS`; -1 where an expert had fewer tokens.
        counts: int32 [E, K], how often each of them reached the expert.
        in_layer: int32 [E, K], how often it reached any expert of the layer.
    """

    layer: int
    assigned: Counts
    ids: Counts
    counts: Counts
    in_layer: Counts

    def line(self) -> bytes:
        """The line of a file."""
        tables = {name: packed(getattr(self, name)) for name in _TABLES}
        numbers = {"layer": self.layer, "num_experts": len(self.assigned)}
        return json_line({**numbers, _ASSIGNED: packed(self.assigned[None]), **tables})

    @classmethod
    def of_line(cls, line: bytes, num_experts: int) -> Self:
        """Read what `line` wrote.

        Raises:
            DataError: It is no such line of a layer with `num_experts` experts.
        """
        fields = require_fields(parsed_line(line), (*_NUMBERS, _ASSIGNED, *_TABLES))
        if read_int(fields["num_experts"], "num_experts", minimum=1) != num_experts:
            raise DataError(f"num_experts must be {num_experts}, as in the sample")
        shape = (num_experts, MOST_TOKENS)
        return cls(
            layer=read_int(fields["layer"], "layer", minimum=1),
            assigned=unpacked(fields[_ASSIGNED], _ASSIGNED, (1, num_experts), np.int32)[0],
            **{name: unpacked(fields[name], name, shape, np.int32) for name in _TABLES},
        )

"""Which experts one step chose together: in each layer, and from each MoE layer to the next.

A `RoutingSample` is counted in every N-th step, of all its tokens. Its file has a line that says
what it is of, and then one line for each layer, so that a reader takes the layers it wants. Which
tokens experts get is another file (top_tokens.py). It knows nothing of how or when it is counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.json_fields import (
    read_int,
    read_int_array,
    require_fields,
)
from moe_megatron.telemetry.values.packed_tables import json_line, packed, parsed_line, unpacked
from moe_megatron.telemetry.values.snapshot import find_layer_problem
from moe_megatron.telemetry.values.top_tokens import TopTokens

Counts = npt.NDArray[np.int32]
Bias = npt.NDArray[np.float32]

_MOST_PAIRS = 2**24  # of experts, in one sample: 64 MiB for each of the two tables
_MOST_OF_LAYER = 1024  # its line has less than 16 MiB
_MOST_EXPERTS = 2**24
_HEAD = ("step", "tokens", "layers", "num_experts")
_BIAS, _TOGETHER, _FLOW = "expert_bias", "together", "flow"
_PAIRS = ("layer", _TOGETHER, _FLOW)


def pairs_fit(num_layers: int, num_experts: int) -> bool:
    """Whether the pairs of experts of a model are few enough to be counted."""
    return num_experts <= _MOST_OF_LAYER and num_layers * num_experts**2 <= _MOST_PAIRS


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleHead:
    """The first line: what a sample is of.

    Attributes:
        step: training step, 1-based.
        tokens: tokens that were counted in each layer, all of the step.
        layers: global 1-based numbers of the MoE layers, length L.
        num_experts: E, experts in each layer.
        expert_bias: float32 [L, E], the balancing bias after the step; None for a model without.
    """

    step: int
    tokens: int
    layers: tuple[int, ...]
    num_experts: int
    expert_bias: Bias | None = None

    def line(self) -> bytes:
        """The line."""
        bias = self.expert_bias
        data: dict[str, Any] = {name: getattr(self, name) for name in _HEAD}
        return json_line({**data, _BIAS: None if bias is None else packed(bias)})

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        """Read what `line` wrote.

        Raises:
            DataError: It is no such line.
        """
        fields = require_fields(parsed_line(line), (*_HEAD, _BIAS))
        layers = tuple(read_int_array(fields["layers"], "layers", ndim=1).tolist())
        if problem := find_layer_problem(layers):
            raise DataError(problem)
        experts = read_int(fields["num_experts"], "num_experts", minimum=1)
        if len(layers) * experts > _MOST_EXPERTS:
            raise DataError(f"{len(layers):,} layers of {experts:,} experts are too many")
        shape, bias = (len(layers), experts), fields[_BIAS]
        return cls(
            step=read_int(fields["step"], "step", minimum=1),
            tokens=read_int(fields["tokens"], "tokens"),
            layers=layers,
            num_experts=experts,
            expert_bias=None if bias is None else unpacked(bias, _BIAS, shape, np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPairs:
    """One further line: the pairs of experts of one layer.

    Attributes:
        layer: its number.
        together: int32 [E, E], tokens that have both experts; on the diagonal those that have one.
        flow: int32 [E, E], tokens that have an expert of this layer and one of the next MoE layer;
            None for the last layer.
    """

    layer: int
    together: Counts
    flow: Counts | None

    def line(self) -> bytes:
        """The line."""
        flow = None if self.flow is None else packed(self.flow)
        return json_line({"layer": self.layer, _TOGETHER: packed(self.together), _FLOW: flow})

    @classmethod
    def of_line(cls, line: bytes, num_experts: int) -> Self:
        """Read what `line` wrote.

        Raises:
            DataError: It is no such line of a layer with `num_experts` experts.
        """
        fields, shape = require_fields(parsed_line(line), _PAIRS), (num_experts, num_experts)
        flow = fields[_FLOW]
        return cls(
            layer=read_int(fields["layer"], "layer", minimum=1),
            together=unpacked(fields[_TOGETHER], _TOGETHER, shape, np.int32),
            flow=None if flow is None else unpacked(flow, _FLOW, shape, np.int32),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingSample:
    """A whole sample.

    Attributes:
        head: what it is of.
        together: int32 [L, E, E], see `LayerPairs`; None where pairs were not counted.
        flow: int32 [L - 1, E, E], likewise.
        tokens: the most frequent tokens of the experts of each layer; () where nobody asked.
    """

    head: SampleHead
    together: Counts | None
    flow: Counts | None
    tokens: tuple[TopTokens, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted, as of routers that tell nobody what they do."""
        return self.head.tokens == 0 and self.head.expert_bias is None

    def lines(self) -> Iterator[bytes]:
        """The lines of its file."""
        yield self.head.line()
        if self.together is None or self.flow is None:
            return
        flows = [*self.flow, None]
        for layer, together, flow in zip(self.head.layers, self.together, flows, strict=True):
            yield LayerPairs(layer=layer, together=together, flow=flow).line()

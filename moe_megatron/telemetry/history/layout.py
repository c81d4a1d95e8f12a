"""The format of a history, as plain values: one Zarr group, its description and its arrays.

    zarr.json            the description, with the last complete step; replaced atomically
    tokens_per_expert    int32 [step, layer, expert], assignments to each expert, without dropped
    assigned             int64 [step, layer], assignments that the router selected
    dropped              int64 [step, layer], assignments dropped by capacity
    QUANTITY             float64 [step, layer], one array for each quantity in the description;
                         NaN where it was not measured
    tokens               int64 [step], tokens routed by each layer; -1 where nothing was measured
    tokens_per_expert.sums
                         int64 [block, layer, expert], sums of tokens_per_expert over `sum_steps`
                         steps each, so that a long window is read from few numbers

Row r is step r + 1; of the sums, row b is the `sum_steps` steps from b * `sum_steps` + 1 on. Rows
after the description's `last_step` have no meaning, nor has a sum that goes beyond it. A history is
plain Zarr version 3, so other programs can read it too. Nothing here reads or writes files.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.reading import parse_json
from moe_megatron.telemetry.values.json_fields import (
    read_int,
    read_int_array,
    read_strings,
    require_fields,
)
from moe_megatron.telemetry.values.per_layer import find_name_problem
from moe_megatron.telemetry.values.snapshot import find_layer_problem

COUNTS = "tokens_per_expert"
SUMS = "tokens_per_expert.sums"
"""No quantity can have this name."""
TOKENS = "tokens"
LAYER_COUNTS = ("assigned", "dropped")
NOT_MEASURED = -1
"""Value of `tokens` in a step without a snapshot."""

SUM_STEPS = 64
"""Steps of a sum: 2 % more on disk, and a long window is read from a 64th of its numbers."""

_VERSION = 2
_MOST_EXPERTS = 2**24  # in all layers; 64 MiB a step
_ATTRIBUTE = "moe_routing_history"
_FIELDS = (
    "version",
    "layers",
    "num_experts",
    "top_k",
    "quantities",
    "first_step",
    "last_step",
)
_SUM_STEPS = "sum_steps"
_MOST_SUM_STEPS = 2**16

# A chunk is the unit that is compressed, written and read; 2 MiB decode in about a millisecond.
# Every flush writes the last chunks again, so they must not be too large; the number of files, and
# of requests to a bucket, means they must not be too small. With all layers in one chunk, reading
# one layer over the whole run would read everything.
_CHUNK_BYTES = 2 * 1024 * 1024
_CHUNK_LAYERS = 16
_CHUNK_STEPS = (16, 1024)
_CHUNK_SUMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """One array of a history.

    Attributes:
        name: name of the array and its folder.
        dtype: type of its values.
        row_shape: shape of one row.
        chunk_shape: shape of a chunk, rows first.
        fill_value: value in steps that were never written.
        dimensions: names of the dimensions, steps first.
        row_steps: steps that a row is of, whose values are summed.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    fill_value: float
    dimensions: tuple[str, ...]
    row_steps: int = 1

    @property
    def chunk_steps(self) -> int:
        """Steps in a chunk."""
        return self.chunk_shape[0] * self.row_steps

    def rows(self, steps: int) -> int:
        """Rows that hold so many steps."""
        return -(-steps // self.row_steps)

    def metadata(self) -> dict[str, Any]:
        """Zarr metadata of the empty array.

        Bitshuffle stores bits of equal significance together: the high bits of counts are the same
        everywhere and compress to almost nothing. LZ4 is the fastest codec; the checksum detects
        damage.
        """
        fill = "NaN" if np.isnan(self.fill_value) else self.fill_value
        blosc = {
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "bitshuffle",
            "typesize": np.dtype(self.dtype).itemsize,
            "blocksize": 0,
        }
        return {
            "shape": [0, *self.row_shape],
            "data_type": self.dtype,
            "fill_value": fill,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk_shape}},
            # One folder for all chunks: cluster file systems are slow at creating folders.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": blosc},
                {"name": "crc32c"},
            ],
            "dimension_names": list(self.dimensions),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLayout:
    """The model that a history describes, and the arrays that it keeps.

    Attributes:
        layers: global 1-based numbers of the MoE layers, length L.
        num_experts: E, experts in each layer.
        top_k: target number of experts for each token.
        quantities: names of the quantities that have an array.
        sum_steps: steps of each sum; 0 in a history of an earlier version, which has none.
    """

    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    quantities: tuple[str, ...]
    sum_steps: int

    @property
    def series_names(self) -> tuple[str, ...]:
        """Names of the arrays with one value per step and layer."""
        return (*LAYER_COUNTS, *self.quantities)

    def with_quantities(self, more: tuple[str, ...]) -> Self:
        """This layout with any of these quantities that it lacks appended."""
        return replace(self, quantities=tuple(dict.fromkeys((*self.quantities, *more))))

    def arrays(self) -> tuple[ArrayLayout, ...]:
        """All arrays of the history."""
        num_layers = len(self.layers)
        longest = _CHUNK_STEPS[1]
        series = [
            ArrayLayout(
                name=name,
                dtype="int64" if name in LAYER_COUNTS else "float64",
                row_shape=(num_layers,),
                chunk_shape=(longest, num_layers),
                fill_value=0 if name in LAYER_COUNTS else float("nan"),
                dimensions=("step", "layer"),
            )
            for name in self.series_names
        ]
        tokens = ArrayLayout(
            name=TOKENS,
            dtype="int64",
            row_shape=(),
            chunk_shape=(longest,),
            fill_value=NOT_MEASURED,
            dimensions=("step",),
        )
        counts = self._counts()
        return (counts, *([self._sums(counts)] if self.sum_steps else []), *series, tokens)

    def _counts(self) -> ArrayLayout:
        chunk_layers = min(len(self.layers), _CHUNK_LAYERS)
        shortest, longest = _CHUNK_STEPS
        row_bytes = chunk_layers * self.num_experts * np.dtype(np.int32).itemsize
        steps = max(1, _CHUNK_BYTES // row_bytes)
        steps = 1 << (steps.bit_length() - 1)  # a power of two divides the chunks of the series
        return ArrayLayout(
            name=COUNTS,
            # Signed, so that differences of counts do not wrap around; writing rejects a step of
            # 2^31 tokens or more.
            dtype="int32",
            row_shape=(len(self.layers), self.num_experts),
            chunk_shape=(min(max(steps, shortest), longest), chunk_layers, self.num_experts),
            fill_value=0,
            dimensions=("step", "layer", "expert"),
        )

    def _sums(self, counts: ArrayLayout) -> ArrayLayout:
        row_bytes = 2 * math.prod(counts.chunk_shape[1:]) * np.dtype(np.int32).itemsize
        rows = max(1, min(_CHUNK_SUMS, _CHUNK_BYTES // row_bytes))
        return replace(
            counts,
            name=SUMS,
            dtype="int64",
            chunk_shape=(1 << (rows.bit_length() - 1), *counts.chunk_shape[1:]),
            dimensions=("block", "layer", "expert"),
            row_steps=self.sum_steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The content of the group's zarr.json.

    Attributes:
        layout: the model and the arrays.
        first_step: first step that may have been recorded, 1-based.
        last_step: last step that is completely written; `first_step - 1` while there is none.
    """

    layout: HistoryLayout
    first_step: int
    last_step: int

    def to_json(self) -> bytes:
        """Returns the text of zarr.json."""
        attributes = {
            "version": _VERSION,
            "layers": list(self.layout.layers),
            "num_experts": self.layout.num_experts,
            "top_k": self.layout.top_k,
            "quantities": list(self.layout.quantities),
            "first_step": self.first_step,
            "last_step": self.last_step,
        }
        if self.layout.sum_steps:
            attributes[_SUM_STEPS] = self.layout.sum_steps
        group = {"zarr_format": 3, "node_type": "group", "attributes": {_ATTRIBUTE: attributes}}
        return json.dumps(group, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            DataError: it is not JSON, not of a history, of another version, or inconsistent.
        """
        try:
            group = parse_json(text)
        except ValueError as error:  # not JSON, or not UTF-8
            raise DataError(f"not valid JSON ({error})") from error
        attributes = group.get("attributes") if isinstance(group, dict) else None
        found = attributes.get(_ATTRIBUTE) if isinstance(attributes, dict) else None
        if found is None:
            raise DataError(f"no '{_ATTRIBUTE}' among its attributes: not a routing history")
        if isinstance(found, dict) and found.get("version") != _VERSION:
            raise DataError(
                f"version {found.get('version')!r}, this program reads {_VERSION}; read it with "
                "the one that wrote it"
            )
        fields = require_fields(found, _FIELDS, (_SUM_STEPS,))
        layers = tuple(read_int_array(fields["layers"], "layers", ndim=1).tolist())
        if problem := find_layer_problem(layers):
            raise DataError(problem)
        quantities = tuple(read_strings(fields["quantities"], "quantities"))
        if problem := next(filter(None, map(find_name_problem, quantities)), None):
            raise DataError(problem)
        sum_steps = read_int(fields.get(_SUM_STEPS, 0), _SUM_STEPS, minimum=0)
        if sum_steps > _MOST_SUM_STEPS:
            raise DataError(f"{_SUM_STEPS} may be {_MOST_SUM_STEPS:,} at most, not {sum_steps:,}")
        first_step = read_int(fields["first_step"], "first_step", minimum=1)
        num_experts = read_int(fields["num_experts"], "num_experts", minimum=1)
        if len(layers) * num_experts > _MOST_EXPERTS:
            raise DataError(f"{len(layers):,} layers of {num_experts:,} experts are too many")
        return cls(
            layout=HistoryLayout(
                layers=layers,
                num_experts=num_experts,
                top_k=read_int(fields["top_k"], "top_k", minimum=1),
                quantities=quantities,
                sum_steps=sum_steps,
            ),
            first_step=first_step,
            last_step=read_int(fields["last_step"], "last_step", minimum=first_step - 1),
        )

"""What the routers of all MoE layers did in one training step: exact counts, and named values.

A `RoutingSnapshot` is an immutable value: built once per step from device counters (elsewhere) and
read by sinks, profiles and reports. It does not know how it was collected, which process held which
expert, which quantities exist, or where it is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.by_task import (
    BY_TASK,
    find_task_problem,
    read_by_task,
    write_by_task,
)
from moe_megatron.telemetry.values.expert_load import LoadMeasures
from moe_megatron.telemetry.values.json_fields import (
    Float64Array,
    Int64Array,
    read_int,
    read_int_array,
    require_fields,
)
from moe_megatron.telemetry.values.per_layer import (
    PerLayer,
    find_values_problem,
    read_per_layer,
    write_per_layer,
)

_FIELDS = (
    "step",
    "tokens",
    "top_k",
    "layers",
    "tokens_per_expert",
    "assigned",
    "dropped",
    "per_layer",
)


def find_layer_problem(layers: tuple[int, ...]) -> str | None:
    """Says what is wrong with a tuple of layer numbers; None if nothing is."""
    if not layers or layers[0] < 1 or any(a >= b for a, b in pairwise(layers)):
        return f"layers must be increasing 1-based layer numbers, at least one, got {layers}"
    return None


def find_count_problem(
    layers: tuple[int, ...],
    tokens: int,
    counts: Int64Array,
    assigned: Int64Array,
    dropped: Int64Array,
) -> str | None:
    """Says how counts violate the conservation of assignments; None if they do not.

        tokens_per_expert.sum() + dropped == assigned <= tokens * experts

    A router selects (token, expert) pairs, each at most once. Every pair either reaches the expert
    or is dropped.
    """
    if counts.size and (counts.min() < 0 or dropped.min() < 0):
        return "tokens_per_expert and dropped must not be negative"
    most = tokens * counts.shape[1]
    rows = zip(
        layers, counts.sum(axis=1).tolist(), dropped.tolist(), assigned.tolist(), strict=True
    )
    for layer, kept, lost, selected in rows:
        if kept + lost != selected:
            return (
                f"layer {layer}: {kept} assignments reached experts and {lost} were dropped, "
                f"but {selected} were assigned"
            )
        if selected > most:
            return (
                f"layer {layer}: {selected} assignments are more than tokens * experts, "
                f"{tokens} * {counts.shape[1]} = {most}"
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingSnapshot(LoadMeasures):
    """Routing of one step over the global batch.

    L is the number of MoE layers, E the number of experts in a layer. Arrays are copied and made
    read-only, since sinks read them on another thread. `LoadMeasures` adds load_share, imbalance
    and more.

    Attributes:
        step: training step, 1-based.
        tokens: tokens that each MoE layer routed (global batch, without padding).
        top_k: number of experts for each token, or the target if the router varies it.
        layers: global 1-based transformer layer numbers of the MoE layers.
        tokens_per_expert: int64 [L, E], assignments to each expert, without dropped ones.
        assigned: int64 [L], assignments that the router selected; for each layer
            `tokens_per_expert.sum() + dropped == assigned`.
        dropped: int64 [L], assignments dropped by capacity.
        per_layer: quantities (`catalog`) by name, each float64 [L].
        by_task: `tokens_per_expert` of the tokens of each task, by its name; empty without tasks.

    Raises:
        AssertionError: shapes, types or the conservation of assignments are violated.
    """

    step: int
    tokens: int
    top_k: int
    layers: tuple[int, ...]
    tokens_per_expert: Int64Array
    assigned: Int64Array
    dropped: Int64Array
    per_layer: Mapping[str, Float64Array]
    by_task: Mapping[str, Int64Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._find_problem()
        if problem is not None:  # not `assert`: reading a file relies on it under `python -O` too
            raise AssertionError(problem)
        for name in ("tokens_per_expert", "assigned", "dropped"):
            copied = getattr(self, name).copy()
            copied.flags.writeable = False
            object.__setattr__(self, name, copied)
        object.__setattr__(self, "per_layer", PerLayer(self.per_layer))
        if self.by_task:
            copies = {name: counts.copy() for name, counts in self.by_task.items()}
            object.__setattr__(self, "by_task", copies)

    def _find_problem(self) -> str | None:
        if self.step < 0 or self.tokens < 0 or self.top_k < 1:
            return (
                "step and tokens must be >= 0 and top_k >= 1, "
                f"got step={self.step}, tokens={self.tokens}, top_k={self.top_k}"
            )
        if problem := find_layer_problem(self.layers):
            return problem
        num_layers = len(self.layers)
        counts = self.tokens_per_expert
        if counts.dtype != np.int64 or counts.ndim != 2 or counts.shape[0] != num_layers:
            return (
                f"tokens_per_expert must be int64 [{num_layers}, E], "
                f"got {counts.dtype} {list(counts.shape)}"
            )
        if counts.shape[1] < self.top_k:
            return f"top_k ({self.top_k}) exceeds the number of experts ({counts.shape[1]})"
        for name, array in {"assigned": self.assigned, "dropped": self.dropped}.items():
            if array.dtype != np.int64 or array.shape != (num_layers,):
                return f"{name} must be int64 [{num_layers}], got {array.dtype} {array.shape}"
        return (
            find_values_problem(self.per_layer, num_layers)
            or find_task_problem(self.by_task, counts)
            or find_count_problem(self.layers, self.tokens, counts, self.assigned, self.dropped)
        )

    def to_json_dict(self) -> dict[str, Any]:
        """Returns plain JSON values: ints exact, floats exact (shortest repr), NaN as null."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "top_k": self.top_k,
            "layers": list(self.layers),
            "tokens_per_expert": self.tokens_per_expert.tolist(),
            "assigned": self.assigned.tolist(),
            "dropped": self.dropped.tolist(),
            "per_layer": write_per_layer(self.per_layer),
            **write_by_task(self.by_task),
        }

    @classmethod
    def from_json_dict(cls, data: object) -> Self:
        """Reads what `to_json_dict` wrote, including quantities that this process does not know.

        Raises:
            DataError: fields are missing, unknown or of the wrong type, or the counts are
                inconsistent.
        """
        fields = require_fields(data, _FIELDS, optional=(BY_TASK,))
        layers = read_int_array(fields["layers"], "layers", ndim=1)
        try:
            return cls(
                step=read_int(fields["step"], "step"),
                tokens=read_int(fields["tokens"], "tokens"),
                top_k=read_int(fields["top_k"], "top_k", minimum=1),
                layers=tuple(layers.tolist()),
                tokens_per_expert=read_int_array(
                    fields["tokens_per_expert"], "tokens_per_expert", ndim=2
                ),
                assigned=read_int_array(fields["assigned"], "assigned", ndim=1),
                dropped=read_int_array(fields["dropped"], "dropped", ndim=1),
                per_layer=read_per_layer(fields["per_layer"], "per_layer"),
                by_task=read_by_task(fields),
            )
        except AssertionError as error:
            raise DataError(f"inconsistent routing snapshot: {error}") from error

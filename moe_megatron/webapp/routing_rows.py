"""The routing of a few hundred steps at once, as arrays that sum to the profile of any part.

It knows neither files nor how long a run is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from moe_megatron.telemetry.history.layout import NOT_MEASURED
from moe_megatron.telemetry.values.expert_load import Float64Array, Int64Array
from moe_megatron.telemetry.values.layer_mean import LayerMean
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelShape:
    """What the routers of a model have in common with those of no other."""

    layers: tuple[int, ...]
    """Global 1-based numbers of the MoE layers."""
    num_experts: int
    top_k: int

    def empty_profile(self) -> RoutingProfile:
        """A profile without steps."""
        return RoutingProfile.empty(
            layers=self.layers, num_experts=self.num_experts, top_k=self.top_k
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingRows:
    """S steps in a row, from `first` on; those without a measurement are among them.

    Counts may be sums over `each` steps, of which a part must then consist.
    """

    first: int
    tokens: Int64Array
    """Tokens of each step, -1 where nothing was measured. [S]"""
    counts: npt.NDArray[np.int32] | Int64Array
    """Assignments that reached each expert. [S / each, L, E]"""
    assigned: Int64Array
    """[S, L]"""
    dropped: Int64Array
    """[S, L]"""
    values: Mapping[str, Float64Array]
    """Quantities by name, each [S, L]; NaN where not measured."""
    each: int = 1

    @classmethod
    def of(cls, shape: ModelShape, first: int, last: int, found: Sequence[RoutingSnapshot]) -> Self:
        """The rows of snapshots, which may lack some of the steps."""
        steps, layers = last - first + 1, len(shape.layers)
        names = dict.fromkeys(name for it in found for name in it.per_layer)
        rows = cls(
            first=first,
            tokens=np.full(steps, NOT_MEASURED, dtype=np.int64),
            counts=np.zeros((steps, layers, shape.num_experts), dtype=np.int32),
            assigned=np.zeros((steps, layers), dtype=np.int64),
            dropped=np.zeros((steps, layers), dtype=np.int64),
            values={name: np.full((steps, layers), np.nan) for name in names},
        )
        for snapshot in found:
            row = snapshot.step - first
            rows.tokens[row] = snapshot.tokens
            rows.counts[row] = snapshot.tokens_per_expert
            rows.assigned[row] = snapshot.assigned
            rows.dropped[row] = snapshot.dropped
            for name, values in snapshot.per_layer.items():
                rows.values[name][row] = values
        return rows

    def add_to(self, profile: RoutingProfile, first: int, last: int) -> None:
        """Add the steps of a window to a profile, as `RoutingProfile.add` does one by one."""
        part = slice(max(0, first - self.first), max(0, last - self.first + 1))
        tokens = self.tokens[part]
        steps = np.flatnonzero(tokens != NOT_MEASURED) + self.first + part.start
        if not steps.size:
            return
        weight = np.maximum(tokens, 0)
        profile.tokens += int(weight.sum())
        profile.steps += int(steps.size)
        lowest, highest = int(steps[0]), int(steps[-1])
        profile.first_step = min(profile.first_step or lowest, lowest)
        profile.last_step = max(profile.last_step or highest, highest)
        blocks = slice(part.start // self.each, -(-part.stop // self.each))
        profile.tokens_per_expert += self.counts[blocks].sum(axis=0, dtype=np.int64)
        profile.assigned += self.assigned[part].sum(axis=0)
        profile.dropped += self.dropped[part].sum(axis=0)
        for name, values in self.values.items():
            mean = profile.means.setdefault(name, LayerMean.empty(len(profile.layers)))
            finite = np.isfinite(values[part])
            mean.weighted_sum += weight @ np.where(finite, values[part], 0.0)
            mean.tokens += weight @ finite.astype(np.int64)

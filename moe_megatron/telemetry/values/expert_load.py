"""How evenly experts are loaded: formulas on plain arrays of counts.

One step (`RoutingSnapshot`) and a sum of steps (`RoutingProfile`) both inherit `LoadMeasures`, so
that "imbalance" means the same in both. Below, n_e are the assignments that reached expert e of a
layer (dropped ones are not counted), L is the number of MoE layers and E the number of experts in a
layer. A layer with no such assignment has no load distribution: its values are NaN, and none of its
experts counts as dead.
"""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def load_share(tokens_per_expert: Int64Array) -> Float64Array:
    """s_e = n_e / sum_i n_i, each expert's share of a layer's assignments; rows sum to 1. [L, E]"""
    totals = tokens_per_expert.sum(axis=1, keepdims=True).astype(np.float64)
    return tokens_per_expert / np.where(totals > 0, totals, np.nan)


def relative_load(tokens_per_expert: Int64Array) -> Float64Array:
    """r_e = E * s_e, the load of each expert over its fair share; 1.0 is perfect balance. [L, E]"""
    num_experts: int = tokens_per_expert.shape[1]
    return load_share(tokens_per_expert) * num_experts


def imbalance(tokens_per_expert: Int64Array) -> Float64Array:
    """max_e r_e, largest over mean load of each layer: 1.0 if perfect, E if one gets all. [L]

    With expert parallelism a layer waits for its busiest expert, so this bounds the slowdown.
    """
    return relative_load(tokens_per_expert).max(axis=1)


def load_cv(tokens_per_expert: Int64Array) -> Float64Array:
    """std_e(n_e) / mean_e(n_e), coefficient of variation (population) of each layer's load. [L]"""
    return relative_load(tokens_per_expert).std(axis=1)


def load_variance(tokens_per_expert: Int64Array) -> Float64Array:
    """var_e(s_e), population variance of the load shares of each layer. [L]"""
    return load_share(tokens_per_expert).var(axis=1)


def dead_expert_mask(tokens_per_expert: Int64Array) -> BoolArray:
    """n_e = 0: experts that no token of these counts has reached; see also `recent_use`. [L, E]"""
    dead: BoolArray = relative_load(tokens_per_expert) == 0
    return dead


def drop_rate(tokens_per_expert: Int64Array, dropped: Int64Array) -> Float64Array:
    """Dropped / (sum_e n_e + dropped), share of each layer's assignments that was dropped. [L]"""
    assignments = (tokens_per_expert.sum(axis=1) + dropped).astype(np.float64)
    return dropped / np.where(assignments > 0, assignments, np.nan)


def experts_per_token(assigned: Int64Array, tokens: int) -> Float64Array:
    """Assigned / tokens: experts that each layer's router selects per token; NaN if none. [L]"""
    return assigned / (tokens if tokens > 0 else math.nan)


def part_of_maximum(entropy: Float64Array, num_experts: int) -> Float64Array:
    """H / ln E, an entropy over its maximum: 1.0 undecided, 0.0 certain. [L]

    With one expert there is nothing to decide (ln 1 = 0); the result is then 1.0 by convention.
    """
    if num_experts == 1:
        return np.ones_like(entropy)
    return entropy / math.log(num_experts)


class _Counts(Protocol):
    """The attributes that `LoadMeasures` needs in a class that inherits it."""

    @property
    def tokens(self) -> int: ...
    @property
    def tokens_per_expert(self) -> Int64Array: ...
    @property
    def assigned(self) -> Int64Array: ...
    @property
    def dropped(self) -> Int64Array: ...


class LoadMeasures:
    """The formulas of this module as properties, for a class with the counts of `_Counts`."""

    __slots__ = ()

    @property
    def num_experts(self: _Counts) -> int:
        """E, the number of experts in a layer."""
        return int(self.tokens_per_expert.shape[1])

    @property
    def load_share(self: _Counts) -> Float64Array:
        """See the function `load_share`. [L, E]"""
        return load_share(self.tokens_per_expert)

    @property
    def relative_load(self: _Counts) -> Float64Array:
        """See the function `relative_load`. [L, E]"""
        return relative_load(self.tokens_per_expert)

    @property
    def imbalance(self: _Counts) -> Float64Array:
        """See the function `imbalance`. [L]"""
        return imbalance(self.tokens_per_expert)

    @property
    def load_cv(self: _Counts) -> Float64Array:
        """See the function `load_cv`. [L]"""
        return load_cv(self.tokens_per_expert)

    @property
    def load_variance(self: _Counts) -> Float64Array:
        """See the function `load_variance`. [L]"""
        return load_variance(self.tokens_per_expert)

    @property
    def drop_rate(self: _Counts) -> Float64Array:
        """See the function `drop_rate`. [L]"""
        return drop_rate(self.tokens_per_expert, self.dropped)

    @property
    def experts_per_token(self: _Counts) -> Float64Array:
        """See the function `experts_per_token`. [L]"""
        return experts_per_token(self.assigned, self.tokens)

    def dead_expert_mask(self: _Counts) -> BoolArray:
        """See the function `dead_expert_mask`. [L, E]"""
        return dead_expert_mask(self.tokens_per_expert)

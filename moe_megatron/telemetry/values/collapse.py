"""When routers have collapsed: a few experts get nearly all tokens, and the others learn nothing.

Alert, console and result mean this. It knows counts; what to change is said by who knows the run.
"""

import numpy as np

from moe_megatron.telemetry.values.expert_load import BoolArray, Int64Array, imbalance
from moe_megatron.telemetry.values.layer_values import load_entropy_ratio

COLLAPSE_ENTROPY = 0.6
"""Load entropy over its maximum, below which a layer has collapsed onto few experts."""
_NEARLY_ALL = 0.95
"""Share of a layer's tokens that visit one expert, from which it has collapsed, whatever its
entropy: with many experts per token that stays high."""
_ROOM = 1.5
"""Experts over experts per token, below which every token visits most of them anyway."""


def collapsed_layers(tokens_per_expert: Int64Array, top_k: int) -> BoolArray:
    """Whether each layer has collapsed, [L], by the counts of some steps, [L, E].

    A layer without a token has not.
    """
    room = tokens_per_expert.shape[1] / top_k
    few = load_entropy_ratio(tokens_per_expert) < COLLAPSE_ENTROPY
    one = (imbalance(tokens_per_expert) >= _NEARLY_ALL * room) & (room >= _ROOM)
    found: BoolArray = (few | one) & (tokens_per_expert.sum(axis=1) > 0)
    return np.asarray(found, dtype=np.bool_)

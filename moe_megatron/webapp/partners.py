"""The experts that an expert is chosen with, in samples of routing: the most frequent first.

Each by the share of the expert's tokens that have it, too, and the share that loads alone would
make, as no expert meets itself. It knows tables of counts, not where they come from.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.pair_lift import expected_pairs
from moe_megatron.telemetry.values.expert_load import Float64Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partners:
    """The partners of each expert of a layer; K of them, or E - 1 where there are fewer."""

    expert: npt.NDArray[np.int64]
    """Numbers of the partners. [E, K]"""
    share: Float64Array
    """Of the expert's tokens; NaN where it had none. [E, K]"""
    null_share: Float64Array
    """What loads alone would make. [E, K]"""


def partners_of(together: Int64Array, most: int) -> Partners:
    """The partners of the experts of a layer.

    Args:
        together: Tokens that have both of two experts, and on the diagonal those of each. [E, E]
        most: How many partners of each.
    """
    counts = together.diagonal()[:, None].astype(np.float64)
    tokens = np.where(counts > 0, counts, np.nan)
    others = together * (1 - np.eye(len(together), dtype=np.int64))
    np.fill_diagonal(others, -1)  # after all that are
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(most, len(together) - 1)]
    by_loads = expected_pairs(together, with_itself=False)
    share: Float64Array = np.take_along_axis(others, order, axis=1) / tokens
    null_share: Float64Array = np.take_along_axis(by_loads, order, axis=1) / tokens
    return Partners(expert=order, share=share, null_share=null_share)

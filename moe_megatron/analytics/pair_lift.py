"""How much more often two experts meet than their loads make them: counts of pairs over expected.

Plain statistics of count tables; it does not know what a meeting is.
"""

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_ROUNDS = 100
_SURE = 3.0
"""Standard deviations of a Poisson count that a pair must be from what is expected."""


def expected_pairs(joint: Int64Array, *, with_itself: bool) -> Float64Array:
    """What the sums of rows and columns alone make of a table of counts. [E, E]

    With the diagonal it is r_i c_j / n. Without (no expert meets itself) it is the table a_i b_j
    off the diagonal that has the same sums (quasi-independence), by proportional fitting.
    """
    counts = joint.astype(np.float64)
    if with_itself:
        fitted: Float64Array = (
            counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / max(counts.sum(), 1.0)
        )
        return fitted
    np.fill_diagonal(counts, 0.0)
    fitted = 1.0 - np.eye(len(counts))
    for _ in range(_ROUNDS):
        for axis in (1, 0):
            sums = fitted.sum(axis=axis, keepdims=True)
            wanted = counts.sum(axis=axis, keepdims=True)
            fitted = fitted * wanted / np.where(sums > 0, sums, 1.0)
    return fitted


def pair_lift(joint: Int64Array, *, with_itself: bool) -> Float64Array:
    """n_ij over what is expected; exactly 1 where it is not surely different. [E, E]

    Sure is what lies three standard deviations of a Poisson count away, as if tokens were
    independent. NaN where nothing is expected, and on the diagonal if no expert meets itself.
    """
    expected = expected_pairs(joint, with_itself=with_itself)
    sure = np.abs(joint - expected) >= _SURE * np.sqrt(expected)
    lift: Float64Array = joint / np.where(expected > 0, expected, np.nan)
    return np.where(np.isnan(lift) | sure, lift, 1.0)

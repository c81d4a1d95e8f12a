"""Intervals from values in data that were drawn again (bootstrap); it knows numbers only."""

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_LEVELS = (0.025, 0.975)


def basic_interval(value: Float64Array, again: Float64Array) -> Float64Array:
    """2 x - q, q the quantiles of x in what was drawn again: the basic bootstrap, 95 %. [2, L]

    Args:
        value: x, as measured. [L]
        again: x in each of the samples that were drawn again. [resamples, L]
    """
    low, high = np.quantile(again, _LEVELS, axis=0)
    return np.stack([2 * value - high, 2 * value - low])

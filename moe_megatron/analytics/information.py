"""How much two labels of the same tokens tell about each other: entropies of count tables.

Plain information theory, in nats; it does not know what the labels mean.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Float64Array = npt.NDArray[np.float64]


def entropy(counts: Counts) -> Float64Array:
    """H = -sum_i p_i ln p_i with p_i = n_i / sum_j n_j, along the last axis. [..., N] -> [...]"""
    totals = counts.sum(axis=-1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    result: Float64Array = -(shares * logs).sum(axis=-1)
    return result


def mutual_information(joint: Counts) -> Float64Array:
    """I(A; B) = H(A) + H(B) - H(A, B), never below 0.

    Args:
        joint: [..., A, B], how often label a occurred together with label b.

    Returns:
        [...], in nats.
    """
    both = joint.reshape(*joint.shape[:-2], -1)
    shared = entropy(joint.sum(axis=-1)) + entropy(joint.sum(axis=-2)) - entropy(both)
    return np.maximum(shared, 0.0)


def normalized_mutual_information(joint: Counts) -> Float64Array:
    """I(A; B) / min(H(A), H(B)): 0 if independent, 1 if one label determines the other.

    Args:
        joint: [..., A, B], how often label a occurred together with label b.

    Returns:
        [...]; NaN if a label never varies, since it then carries no information.
    """
    smaller = np.minimum(entropy(joint.sum(axis=-1)), entropy(joint.sum(axis=-2)))
    return mutual_information(joint) / np.where(smaller > 0, smaller, np.nan)

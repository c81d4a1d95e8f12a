"""How much two labels of the same tokens say about each other: entropies of tables of counts.

Plain information theory in nats; it does not know what the labels mean.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


def entropy(counts: Counts) -> Float64Array:
    """Entropy of the distribution that counts along the last axis make. [...]"""
    totals = counts.sum(axis=-1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    result: Float64Array = -(shares * logs).sum(axis=-1)
    return result


def mutual_information(joint: Counts) -> Float64Array:
    """I(A; B) = H(A) + H(B) - H(A, B), never below 0.

    Args:
        joint: [..., A, B], how often label a met label b.

    Returns:
        [...], in nats.
    """
    both = joint.reshape(*joint.shape[:-2], -1)
    shared = entropy(joint.sum(axis=-1)) + entropy(joint.sum(axis=-2)) - entropy(both)
    return np.maximum(shared, 0.0)


def normalized_mutual_information(joint: Counts) -> Float64Array:
    """I(A; B) / min(H(A), H(B)): 0 independent, 1 if one label gives away the other.

    Args:
        joint: [..., A, B], how often label a met label b.

    Returns:
        [...]; NaN where a label never varies, as nothing can be learned from it or about it.
    """
    smaller = np.minimum(entropy(joint.sum(axis=-1)), entropy(joint.sum(axis=-2)))
    return mutual_information(joint) / np.where(smaller > 0, smaller, np.nan)

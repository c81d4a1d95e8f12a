"""What stands at each place of a row of samples or pairs, as arrays.

The samples follow one another, each with positions of its own; padding does, too, at the end.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_megatron.data.instructions.stored import Stored, StoredPairs


def row_of(
    stored: Stored,
    numbers: Sequence[int],
    length: int,
    padding_token: int,
    *,
    first_pair: int = 0,
) -> dict[str, NDArray[np.generic]]:
    """The row of some samples or pairs, which fit.

    Args:
        stored: Holds them.
        numbers: Which of them.
        length: Places of the row.
        padding_token: Stands where nothing is.
        first_pair: Number of the dataset's first pair among all pairs of a run.

    Returns:
        Arrays [length]: tokens, labels, loss mask, positions and padding; of pairs also `pairs`: n
        for the chosen side of the pair of number n, -n for the rejected one, counted from 1, and 0
        for padding.
    """
    end = 0
    tokens = np.full(length, padding_token, dtype=np.int64)
    labels, positions, pairs = (np.zeros_like(tokens) for _ in range(3))
    counts = np.zeros(length, dtype=np.float32)
    for number in numbers:
        for side, (ids, learned) in enumerate(stored.parts(number, length)):
            start, end = end, end + len(ids) - 1
            tokens[start:end], labels[start:end] = ids[:-1], ids[1:]
            counts[start:end] = learned[1:]
            positions[start:end] = np.arange(end - start)
            pairs[start:end] = (1 - 2 * side) * (first_pair + number + 1)
    positions[end:] = np.arange(length - end)
    row: dict[str, NDArray[np.generic]] = {
        "tokens": tokens,
        "labels": labels,
        "loss_mask": counts,
        "position_ids": positions,
        "padding": np.arange(length) >= end,
    }
    return {**row, "pairs": pairs} if isinstance(stored, StoredPairs) else row

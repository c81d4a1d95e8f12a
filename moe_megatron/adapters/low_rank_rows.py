"""Rows of low-rank adapters: taken from one matrix, and joined to that of another.

Megatron has queries, keys and values in one matrix, and gate and up projection; Hugging Face has
one for each, or those of all experts in one tensor. It does not know which.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.errors import CheckpointError

Part = tuple[slice, LowRank]
"""Outputs of a matrix, and the adapter that has these alone."""


def rows_of(whole: LowRank, rows: slice) -> LowRank:
    """The adapter of some rows of a matrix: the same A, and these rows of B."""
    magnitude = None if whole.magnitude is None else whole.magnitude[rows]
    return replace(whole, b=whole.b[rows], magnitude=magnitude)


def joined(parts: Sequence[Part], outputs: int) -> LowRank:
    """The adapter of a matrix whose rows are adapted in parts.

    Parts with the same A share its rank: three matrices with A of their own make a rank of 3 r, and
    a B that is 0 outside of their blocks. Rows of no part are not adapted.

    Args:
        parts: At least one; their rows must not overlap.
        outputs: Rows of the whole matrix.

    Raises:
        CheckpointError: Some rows have magnitudes, and others none.
    """
    scale = parts[0][1].scale
    groups: list[tuple[Tensor, list[Part]]] = []
    for part in parts:
        a = part[1].a
        same = (own for known, own in groups if known is a or _equal(known, a))
        found = next(same, None)
        if found is None:
            groups.append((a, [part]))
        else:
            found.append(part)
    b = parts[0][1].b.new_zeros(outputs, sum(len(a) for a, _ in groups))
    first = 0
    for a, own in groups:
        for rows, low_rank in own:
            factor = low_rank.scale / scale
            b[rows, first : first + len(a)] = low_rank.b if factor == 1 else low_rank.b * factor
        first += len(a)
    return LowRank(torch.cat([a for a, _ in groups]), b, scale, _magnitude(parts, outputs))


def padded(whole: LowRank, rank: int, scale: float) -> LowRank:
    """The same adapter with a larger rank, whose further rows of A are 0, and another scale."""
    more = rank - whole.rank
    a = torch.cat((whole.a, whole.a.new_zeros(more, whole.shape[1])))
    b = torch.cat((whole.b, whole.b.new_zeros(whole.shape[0], more)), dim=1)
    factor = whole.scale / scale
    return replace(whole, a=a, b=b if factor == 1 else b * factor, scale=scale)


def unpadded(whole: LowRank) -> LowRank:
    """The same adapter without the last rows of A and columns of B that are 0."""
    used = whole.a.any(dim=1) | whole.b.any(dim=0)
    rank = int(used.nonzero().max()) + 1 if used.any() else 0
    return replace(whole, a=whole.a[:rank], b=whole.b[:, :rank])


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _magnitude(parts: Sequence[Part], outputs: int) -> Tensor | None:
    given = [(rows, part.magnitude) for rows, part in parts if part.magnitude is not None]
    if not given:
        return None
    filled = sum(len(magnitude) for _, magnitude in given)
    if filled != outputs:
        raise CheckpointError(
            f"{filled} of {outputs} rows of a matrix have magnitudes (DoRA); Megatron has them in "
            "one matrix, of which all rows must. Adapt q_proj, k_proj and v_proj together, and "
            "gate_proj with up_proj, or merge the adapter with the program that trained it."
        )
    whole = given[0][1].new_empty(outputs)
    for rows, magnitude in given:
        whole[rows] = magnitude
    return whole

"""A plane through what a layer's gate sees, and the gate's first choice at each point of it.

The plane is that of the two principal components of the tokens' vectors. It knows vectors and a
function from vectors to logits, not models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Gate = Callable[[Float64Array], Float64Array]
"""Vectors [points, hidden] to logits [points, E]."""

_GRID = 160
_MARGIN = 0.06
"""Of the plane that is shown around the tokens, in parts of their extent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatePlane:
    """Tokens on the plane of their principal components, and the gate's first choices.

    Attributes:
        points: [tokens, 2], each token's nearest point on the plane, from the tokens' mean.
        first_choice: [tokens], the expert with the highest logit for the token itself.
        grid: [y, x], the expert with the highest logit for points of the plane.
        extent: left, right, bottom and top of the grid.
        variance: part of the variance of the tokens' vectors that lies in the plane, of each axis.
        agreement: part of the tokens whose point has the token's own first choice.
        num_experts: E.
    """

    points: Float64Array
    first_choice: Int64Array
    grid: Int64Array
    extent: tuple[float, float, float, float]
    variance: tuple[float, float]
    agreement: float
    num_experts: int


def find_gate_plane(hidden: Float64Array, gate: Gate) -> GatePlane:
    """The plane of the two principal components of vectors, and a gate's choices on it.

    Args:
        hidden: [tokens, hidden], what enters the gate.
        gate: What the gate makes of such vectors.

    Raises:
        DataError: There are fewer than three different vectors.
    """
    mean = hidden.mean(axis=0)
    centred = hidden - mean
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    if len(sizes) < 2 or sizes[1] <= 1e-9 * max(sizes[0], 1e-300):
        raise DataError(
            f"a plane needs three different tokens, and {len(hidden)} were given that do not span "
            "one; give a longer text."
        )
    plane = axes[:2]
    points = centred @ plane.T
    logits = gate(hidden)
    first_choice = logits.argmax(axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    across, up = (np.linspace(low[i], high[i], _GRID) for i in (0, 1))
    rows = [np.column_stack([across, np.full(_GRID, y)]) for y in up]
    grid = np.stack([gate(mean + row @ plane).argmax(axis=1) for row in rows])
    shares = sizes**2 / (sizes**2).sum()
    return GatePlane(
        points=points,
        first_choice=first_choice,
        grid=grid,
        extent=(float(low[0]), float(high[0]), float(low[1]), float(high[1])),
        variance=(float(shares[0]), float(shares[1])),
        agreement=float((gate(mean + points @ plane).argmax(axis=1) == first_choice).mean()),
        num_experts=logits.shape[1],
    )

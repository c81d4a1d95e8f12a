"""Numbers as JSON that every browser reads: NaN and the infinite are null."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def nullable(value: float | None) -> float | None:
    """A number, or None where it is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def nested(values: npt.NDArray[Any]) -> Any:
    """An array of any rank as lists of `nullable`, rounded to what a picture can show."""
    if values.ndim == 0:
        return nullable(float(values))
    if values.ndim > 1:
        return [nested(row) for row in values]
    return [None if not math.isfinite(it) else float(f"{it:.6g}") for it in values.tolist()]


def rounded(values: Iterable[float]) -> list[float | None]:
    """A list of numbers with six digits, `nullable`."""
    found: list[float | None] = nested(np.array(list(values), dtype=np.float64))
    return found

"""Finds infinities and NaN in the bytes of weights, at the speed at which memory is read.

An exponent of ones alone means infinity or NaN. Read as integers, such numbers are the largest of
their sign: the positive ones among signed integers, the negative ones among unsigned integers. So
two maxima tell, and nothing is copied.
"""

import numpy as np

_FIRST = {
    "F8_E4M3": (1, 0x7F),
    "F8_E5M2": (1, 0x7C),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F32": (4, 0x7F80_0000),
    "F64": (8, 0x7FF0_0000_0000_0000),
}
"""Bytes of an element, and the smallest positive one that is no number."""


def has_nonfinite(data: memoryview | bytearray, dtype: str) -> bool:
    """Whether any element is infinite or NaN.

    Args:
        data: Whole elements.
        dtype: Their type; integers are always finite.
    """
    if dtype not in _FIRST or not len(data):
        return False
    item, first = _FIRST[dtype]
    signed, unsigned = np.frombuffer(data, f"<i{item}"), np.frombuffer(data, f"<u{item}")
    sign = 1 << (8 * item - 1)
    return bool(signed.max() >= first or unsigned.max() >= (sign | first))

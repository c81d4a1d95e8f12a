"""Names and sizes of element types, as safetensors spells them.

Everything in this package speaks of types by these names; torch is imported only where numbers are
computed.
"""

from typing import TYPE_CHECKING

import numpy as np

from moe_megatron.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_TYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "F64": (8, "float64"),
}
"""Name: bytes an element, and torch's name."""

_BY_TORCH_NAME = {torch_name: name for name, (_, torch_name) in _TYPES.items()}

_WRITTEN_AS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"} | {
    torch_name: name for torch_name, name in _BY_TORCH_NAME.items() if name in {"F16", "F32"}
}
_WRITTEN_AS["bfloat16"] = "BF16"

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
"""Types of quantised weights, whose scales lie beside them."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Types that a cast may read and write."""


_FIRST_NONFINITE = {
    "F8_E4M3": (1, 0x7F),
    "F8_E5M2": (1, 0x7C),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F32": (4, 0x7F80_0000),
    "F64": (8, 0x7FF0_0000_0000_0000),
}
"""Bytes of an element, and the smallest positive one that is no number."""


def is_known(name: str) -> bool:
    """Whether this package can handle elements of this type."""
    return name in _TYPES


def item_size(name: str) -> int:
    """Bytes of one element."""
    return _TYPES[name][0]


def to_torch(name: str) -> "torch.dtype":
    """The torch type of that name."""
    import torch

    found = getattr(torch, _TYPES[name][1])
    assert isinstance(found, torch.dtype)
    return found


def from_torch_name(torch_name: str) -> str | None:
    """Our name for torch's, such as "bfloat16"; None where no checkpoint has such elements."""
    return _BY_TORCH_NAME.get(torch_name)


def parse(text: str) -> str:
    """Our name for a type as a user writes it: bf16, fp16, fp32 (or torch's names).

    Raises:
        CheckpointError: The text is none of them.
    """
    if text.lower() in _WRITTEN_AS:
        return _WRITTEN_AS[text.lower()]
    raise CheckpointError(f"weights cannot be converted to '{text}'; use bf16, fp16 or fp32.")


def has_nonfinite(data: memoryview | bytearray, dtype: str) -> bool:
    """Whether any element is infinite or NaN; found at the speed at which memory is read.

    An exponent of ones alone means infinity or NaN. Read as integers, such numbers are the largest
    of their sign: the positive ones among signed integers, the negative ones among unsigned
    integers. So two maxima tell, and nothing is copied.

    Args:
        data: Whole elements.
        dtype: Their type; integers are always finite.
    """
    if dtype not in _FIRST_NONFINITE or not len(data):
        return False
    item, first = _FIRST_NONFINITE[dtype]
    signed, unsigned = np.frombuffer(data, f"<i{item}"), np.frombuffer(data, f"<u{item}")
    sign = 1 << (8 * item - 1)
    return bool(signed.max() >= first or unsigned.max() >= (sign | first))

"""Names and sizes of element types, as spelled by safetensors.

Everything in this package refers to types by these names; torch is imported only where numbers are
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
"""Bytes per element and torch's name of each type."""

_BY_TORCH_NAME = {torch_name: name for name, (_, torch_name) in _TYPES.items()}

_WRITTEN_AS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"} | {
    torch_name: name for torch_name, name in _BY_TORCH_NAME.items() if name in {"F16", "F32"}
}
_WRITTEN_AS["bfloat16"] = "BF16"

EIGHT_BIT_FLOATS = frozenset({"F8_E4M3", "F8_E5M2"})
"""Types of quantised weights, whose scales are separate tensors."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Types from and to which weights can be cast."""


_FIRST_NONFINITE = {
    "F8_E4M3": (1, 0x7F),
    "F8_E5M2": (1, 0x7C),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F32": (4, 0x7F80_0000),
    "F64": (8, 0x7FF0_0000_0000_0000),
}
"""Bytes per element, and the bits of the smallest positive one that is infinite or NaN."""


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
    """Our name for a torch name such as "bfloat16"; None if this package does not support it."""
    return _BY_TORCH_NAME.get(torch_name)


def parse(text: str) -> str:
    """Our name for a type as written by a user: bf16, fp16, fp32, or torch's names for them.

    Raises:
        CheckpointError: The text is none of these.
    """
    if text.lower() in _WRITTEN_AS:
        return _WRITTEN_AS[text.lower()]
    raise CheckpointError(f"weights cannot be converted to '{text}'; use bf16, fp16 or fp32.")


def has_nonfinite(data: memoryview | bytearray, dtype: str) -> bool:
    """Whether any element is infinite or NaN; as fast as memory can be read.

    An exponent of all ones means infinity or NaN. Interpreted as integers, such numbers are the
    largest of their sign: the positive ones as signed, the negative ones as unsigned integers. So
    two maxima decide, without copying.

    Args:
        data: A whole number of elements.
        dtype: Their type; integers are always finite.
    """
    if dtype not in _FIRST_NONFINITE or not len(data):
        return False
    item, first = _FIRST_NONFINITE[dtype]
    signed, unsigned = np.frombuffer(data, f"<i{item}"), np.frombuffer(data, f"<u{item}")
    sign = 1 << (8 * item - 1)
    return bool(signed.max() >= first or unsigned.max() >= (sign | first))

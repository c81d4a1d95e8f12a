"""The load of every expert of a model as bytes: one for each, the logarithm of its load.

    r = E * n_e / sum_i n_i                          load over the fair share
    v = clamp(round(127.5 + 31.75 * log2(r)), 1, 254)

Neighbouring values differ by 2.2 % in load, less than an eye tells colours apart, over four octaves
to either side. 61 layers of 256 experts are 15.6 KB, a twentieth of the same numbers as JSON.
It knows counts, not where they come from, and not which colour a byte has.
"""

import struct

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.expert_load import Int64Array, relative_load

MAGIC = b"MOE1"
DEAD = 0
"""An expert that no token reached, in a layer that had tokens."""
NOT_MEASURED = 255
MIDDLE, PER_OCTAVE = 127.5, 31.75
"""The value of a fair share, and what doubling the load adds."""

_HEADER = struct.Struct("<4sIIHH")
_LARGEST = 2**16 - 1

UInt8Array = npt.NDArray[np.uint8]


def load_bytes(tokens_per_expert: Int64Array) -> UInt8Array:
    """One byte for the load of each expert. [L, E]

    Args:
        tokens_per_expert: Assignments that reached each expert. [L, E]
    """
    ratio = relative_load(tokens_per_expert)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(np.rint(MIDDLE + PER_OCTAVE * np.log2(ratio)), 1, NOT_MEASURED - 1)
    value = np.where(ratio == 0, DEAD, value)
    return np.where(np.isnan(ratio), NOT_MEASURED, value).astype(np.uint8)


def encode_frame(tokens_per_expert: Int64Array, first: int, last: int) -> bytes:
    """The bytes that the page draws as a matrix of layers and experts.

    Little endian: "MOE1", first and last step (u32), layers and experts (u16), then `load_bytes`
    layer by layer.

    Args:
        tokens_per_expert: Assignments that reached each expert in these steps. [L, E]
        first: First step of the window.
        last: Last step of the window.

    Raises:
        DataError: There are more layers or experts than the header can count.
    """
    num_layers, num_experts = tokens_per_expert.shape
    if max(num_layers, num_experts) > _LARGEST:
        raise DataError(
            f"a matrix of {num_layers:,} layers and {num_experts:,} experts cannot be sent, which "
            f"may have {_LARGEST:,} of each; read the history with RoutingHistory instead."
        )
    header = _HEADER.pack(MAGIC, first, last, num_layers, num_experts)
    return header + load_bytes(tokens_per_expert).tobytes()


def is_frame(data: bytes) -> bool:
    """Whether bytes from elsewhere are a frame."""
    if len(data) < _HEADER.size:
        return False
    magic, first, last, num_layers, num_experts = _HEADER.unpack_from(data)
    size = _HEADER.size + num_layers * num_experts
    return bool(magic == MAGIC and first <= last and len(data) == size)

"""Lines of JSON with tables of numbers: little-endian, compressed by zlib, in base64.

It knows neither what a line is of nor which fields it has.
"""

import base64
import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_megatron.errors import DataError
from moe_megatron.reading import parse_json
from moe_megatron.telemetry.values.json_fields import read_str


def json_line(data: dict[str, Any]) -> bytes:
    """A line."""
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def parsed_line(line: bytes) -> object:
    """What a line holds.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return parse_json(line)
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})") from error


def packed(values: npt.NDArray[Any]) -> str:
    """A table as text."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 1)).decode()


def unpacked(text: object, name: str, shape: tuple[int, int], dtype: Any) -> npt.NDArray[Any]:
    """The table in a text; what does not unpack to exactly its size is refused unread.

    Args:
        text: What `packed` gave.
        name: Of the field, for messages.
        shape: Of the table.
        dtype: Of its numbers.

    Raises:
        DataError: It is no such table.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    size = shape[0] * shape[1] * wanted.itemsize
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(read_str(text, name), validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise DataError(f"{name} is not packed as base64 of zlib ({error})") from error
    if len(raw) != size or not unpacker.eof:
        raise DataError(f"{name} must be {list(shape)} values of {wanted.itemsize} bytes")
    return np.frombuffer(raw, wanted).reshape(shape).astype(dtype)

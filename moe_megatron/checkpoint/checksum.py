"""A fast checksum of written bytes: xxh3 where the package is installed, else CRC-32."""

import zlib
from collections.abc import Callable
from typing import Protocol

try:
    import xxhash
except ImportError:  # pragma: no cover - it comes with `datasets`
    xxhash = None  # type: ignore[assignment]


class Checksum(Protocol):
    """Takes bytes, part by part."""

    def update(self, data: memoryview, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


class Crc32:
    """CRC-32, of the standard library."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""
        return f"{self._value:08x}"


ALGORITHMS: dict[str, Callable[[], Checksum]] = {"crc32": Crc32}
if xxhash is not None:
    ALGORITHMS["xxh3"] = xxhash.xxh3_64

DEFAULT = "xxh3" if "xxh3" in ALGORITHMS else "crc32"
"""What new conversions use."""

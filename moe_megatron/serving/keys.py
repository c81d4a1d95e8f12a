"""API keys: who may use a server. They come from a file or the environment, never from argv."""

import hashlib
import hmac
import os
from pathlib import Path

from moe_megatron.errors import ConfigError
from moe_megatron.reading import read_text
from moe_megatron.telemetry.exporter.access_token import check_token

VARIABLE = "MOE_MEGATRON_API_KEY"
_BEARER = "Bearer "
_MOST_BYTES = 2**16


class Keys:
    """Keys of a server; without any, everybody may use it."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(it) for it in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str) -> bool:
        """Whether the value of an `Authorization` header holds one; takes as long for any other."""
        if not self._digests:
            return True
        given = _digest(authorization.removeprefix(_BEARER))
        found = [hmac.compare_digest(given, it) for it in self._digests]
        return authorization.startswith(_BEARER) and any(found)


def read_keys(file: Path | None) -> Keys:
    """The keys in a file, one a line, and the one in the environment.

    Raises:
        ConfigError: The file cannot be read or holds none, or a key is not printable ASCII.
    """
    keys = []
    if file is not None:
        try:
            text = read_text(file, _MOST_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the file of API keys {file} cannot be read ({error}); give a text file with one "
                "key a line with --api-keys."
            ) from error
        keys = [line.strip() for line in text.splitlines() if line.strip()]
        if not keys:
            raise ConfigError(f"the file of API keys {file} holds none; write one key a line.")
    if VARIABLE in os.environ:
        keys.append(os.environ[VARIABLE])
    for key in keys:
        check_token(key, f"a key of {file or VARIABLE}")
    return Keys(keys)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

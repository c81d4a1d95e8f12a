"""Where a Redis server is, and how one gets in: `redis://[USER@]HOST[:PORT][/NUMBER]`.

A password comes from the environment or a file of its owner alone, never from an address, which
others see. It does not know what is kept there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.files import user_path
from moe_megatron.reading import read_text

PASSWORD, PASSWORD_FILE = "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"
_SCHEMES = ("redis", "rediss")
_PORT = 6379
_MOST_PASSWORD_BYTES = 4096
_PATIENCE_SECONDS = 1.0
"""A server that does not answer must not hold up those who look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A server, without having asked it anything."""

    host: str
    port: int = _PORT
    number: int = 0
    """Of its database."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    encrypted: bool = False
    """Whether the connection is by TLS."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_SCHEMES[self.encrypted]}://{host}:{self.port}/{self.number}"

    @classmethod
    def parse(cls, given: str, environment: Mapping[str, str] = os.environ) -> "RedisAddress":
        """Read an address, and the password from where it is.

        Raises:
            ConfigError: It is none, or a password stands in it, or others may read that file.
        """
        try:
            parts = urlsplit(given)
            port, number = parts.port or _PORT, int(parts.path.strip("/") or 0)
        except ValueError:
            parts, port, number = urlsplit(""), 0, -1
        if parts.password is not None or "password" in parts.query:
            raise ConfigError(
                "the password of a Redis server must not stand on the command line, where others "
                f"see it; put it into the variable {PASSWORD}, or into a file that {PASSWORD_FILE} "
                "names, and leave it out of --redis."
            )
        wrong = parts.query or parts.fragment or number < 0 or not parts.hostname
        if wrong or parts.scheme not in _SCHEMES:
            raise ConfigError(
                "--redis must be redis://[USER@]HOST[:PORT][/NUMBER], or rediss:// with TLS, such "
                "as redis://127.0.0.1:6379; give the address of a Redis server in this form."
            )
        return cls(
            host=str(parts.hostname),
            port=port,
            number=number,
            user=parts.username,
            password=_password(environment),
            encrypted=parts.scheme == _SCHEMES[1],
        )

    def options(self) -> dict[str, Any]:
        """What a client of the `redis` package is made with: impatient, and never twice.

        Raises:
            BackendUnavailableError: The package is not installed.
        """
        try:
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise BackendUnavailableError(
                f"--redis needs the client of Redis, which is not installed ({error}); install it "
                "with: pip install 'open-moe-trainer-lab[redis]'"
            ) from error
        return {
            "host": self.host,
            "port": self.port,
            "db": self.number,
            "username": self.user,
            "password": self.password,
            "ssl": self.encrypted,
            "socket_timeout": _PATIENCE_SECONDS,
            "socket_connect_timeout": _PATIENCE_SECONDS,
            "retry": Retry(NoBackoff(), 0),
        }

    def check(self) -> None:
        """Ask the server whether it lets us in.

        Raises:
            BackendUnavailableError: It does not, or there is none.
        """
        options = self.options()
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis(**options) as client:
                client.ping()
        except (RedisError, OSError) as error:
            why = " ".join(str(error).split())
            raise BackendUnavailableError(
                f"the Redis server {self} cannot be used ({why}); check that it runs and lets you "
                f"in (the password comes from the variable {PASSWORD}, or a file that "
                f"{PASSWORD_FILE} names), or leave --redis out: then each worker reads by itself."
            ) from error


def _password(environment: Mapping[str, str]) -> str | None:
    if PASSWORD in environment:
        return environment[PASSWORD]
    if PASSWORD_FILE not in environment:
        return None
    path: Path = user_path(environment[PASSWORD_FILE])
    try:
        mode = path.stat().st_mode
        text = read_text(path, _MOST_PASSWORD_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"the password of Redis cannot be read from {path} ({why}); {PASSWORD_FILE} must name "
            "a small file with nothing but the password."
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"the password of Redis in {path} can be read or written by others (mode "
            f"{mode & 0o777:04o}); make it yours alone: chmod 600 {path}"
        )
    return text.removesuffix("\n")

"""Access tokens: who each is for, and what whoever has it may do.

A token is shown once, when it is made; what is kept is its digest. It does not know how a token
arrives.
"""

import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from moe_megatron.errors import ConfigError
from moe_megatron.webapp.access.database import access_tokens, digest

Role = Literal["viewer", "operator"]
"""What somebody may do."""
ROLES: tuple[Role, ...] = get_args(Role)

_BYTES = 32
_MOST_CHARACTERS = 256
"""A longer word is no token, and is not looked at."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who has logged in."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownToken:
    """A token, as far as it is known."""

    user: User
    digest: str
    made: float
    """When, in seconds since 1970."""


class AccessTokens:
    """The access tokens of a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, role: Role) -> str:
        """Make a token; returns it, and nobody can see it again.

        Args:
            name: Of whom it is for, unique.
            role: What they may do.

        Raises:
            ConfigError: The name is none, or is taken.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name[:80]}' is no name for a token; take up to 64 of letters, digits and "
                "._@-, beginning with a letter or a digit."
            )
        token = secrets.token_urlsafe(_BYTES)
        row = {"name": name, "role": role, "digest": digest(token), "made": time.time()}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(access_tokens).values(row))
        except IntegrityError as error:
            raise ConfigError(
                f"there is a token for {name} already, which cannot be shown again; take it away "
                f"first with: moe-megatron dashboard token {name} --revoke --database ..."
            ) from error
        return token

    def remove(self, name: str) -> None:
        """Take a token away, and with it the sessions that began with it.

        Raises:
            ConfigError: There is none of this name.
        """
        with self._engine.begin() as connection:
            found = connection.execute(delete(access_tokens).where(access_tokens.c.name == name))
        if not found.rowcount:
            raise ConfigError(
                f"there is no token for {name[:80]}; moe-megatron dashboard token --database ... "
                "lists those that there are."
            )

    def all(self) -> list[KnownToken]:
        """All tokens, by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(access_tokens).order_by(access_tokens.c.name)).all()
        return [
            KnownToken(user=User(name=it.name, role=it.role), digest=it.digest, made=it.made)
            for it in rows
            if it.role in ROLES
        ]

    def find(self, token: str) -> KnownToken | None:
        """Whose token it is; None if it is nobody's."""
        if len(token) > _MOST_CHARACTERS:
            return None
        given, found = digest(token), None
        for known in self.all():  # all of them, whichever fits: the time it takes tells nothing
            if hmac.compare_digest(known.digest, given):
                found = known
        return found

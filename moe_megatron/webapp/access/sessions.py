"""Sessions: what a browser keeps in place of a token, for a day's work.

A session ends with its time, when somebody logs out, and with the token it began with. It does not
know cookies.
"""

import secrets
import time
from collections.abc import Callable

from sqlalchemy import Engine, delete, insert, select

from moe_megatron.webapp.access.database import access_tokens, digest, sessions
from moe_megatron.webapp.access.tokens import ROLES, KnownToken, User

SECONDS = 12 * 3600.0
"""How long a session lasts."""
_BYTES = 32


class Sessions:
    """The sessions of a database.

    Args:
        engine: Of the database.
        clock: Gives the seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    def begin(self, token: KnownToken) -> str:
        """Begin one; returns the secret by which it is found."""
        secret, now = secrets.token_urlsafe(_BYTES), self._clock()
        row = {"digest": digest(secret), "token_digest": token.digest, "ends": now + SECONDS}
        with self._engine.begin() as connection:
            connection.execute(delete(sessions).where(sessions.c.ends <= now))
            connection.execute(insert(sessions).values(row))
        return secret

    def find(self, secret: str) -> User | None:
        """Whose session it is; None if it is over, or never was."""
        query = (
            select(access_tokens.c.name, access_tokens.c.role)
            .join(sessions, sessions.c.token_digest == access_tokens.c.digest)
            .where(sessions.c.digest == digest(secret), sessions.c.ends > self._clock())
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.role not in ROLES:
            return None
        return User(name=row.name, role=row.role)

    def end(self, secret: str) -> None:
        """End one; nothing happens if there is none."""
        with self._engine.begin() as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == digest(secret)))

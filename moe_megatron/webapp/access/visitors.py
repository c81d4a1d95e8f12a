"""Who somebody is, by what a request brings: a token in a header, or the cookie of a session.

It does not know what those may do who are known.
"""

import math
from collections.abc import Mapping

from sqlalchemy import Engine
from starlette.requests import HTTPConnection

from moe_megatron.webapp.access.audit import Audit
from moe_megatron.webapp.access.sessions import Sessions
from moe_megatron.webapp.access.tokens import AccessTokens, KnownToken, User
from moe_megatron.webapp.access.wrong_tokens import WrongTokens

_SCHEME = "bearer"
_UNKNOWN = {"www-authenticate": "Bearer"}
_LOG_IN = (
    "this dashboard asks who you are; log in on its page, or send the header `Authorization: "
    "Bearer TOKEN`. Whoever started it makes tokens: moe-megatron dashboard token NAME."
)


class RefusedError(Exception):
    """Somebody is not let in; its text says why."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})


class Access:
    """Those who may enter.

    Args:
        engine: Database of their tokens and sessions, and of what they did.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens, self.sessions = AccessTokens(engine), Sessions(engine)
        self.audit = Audit(engine)
        self._wrong = WrongTokens(engine)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def user_of(self, connection: HTTPConnection) -> User:
        """Who asks.

        Raises:
            RefusedError: Nobody who may.
            SQLAlchemyError: The database cannot be reached.
        """
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == _SCHEME:
            return self.owner_of(token.strip(), address_of(connection)).user
        session = connection.cookies.get(cookie_name(connection))
        user = None if session is None else self.sessions.find(session)
        if user is None:
            raise RefusedError(401, _LOG_IN, _UNKNOWN)
        return user

    def owner_of(self, token: str, address: str) -> KnownToken:
        """Whose token it is.

        Args:
            token: What was given.
            address: By whom.

        Raises:
            RefusedError: It is nobody's, or too many of this address were.
            SQLAlchemyError: The database cannot be reached.
        """
        if wait := math.ceil(self._wrong.wait(address)):
            raise RefusedError(
                429,
                f"too many wrong tokens came from your address; try again in {wait} s.",
                {"retry-after": str(wait)},
            )
        known = self.tokens.find(token)
        if known is None:
            self._wrong.note(address)
            raise RefusedError(
                401,
                "this token is nobody's; it may have been taken away, or not copied whole.",
                _UNKNOWN,
            )
        return known


def address_of(connection: HTTPConnection) -> str:
    """Where a request comes from."""
    return "" if connection.client is None else connection.client.host


def cookie_name(connection: HTTPConnection) -> str:
    """The cookie of a session: browsers send those of all ports of a machine to each of them."""
    server = connection.scope.get("server") or ("", 0)
    return f"moe_megatron_{server[1]}"

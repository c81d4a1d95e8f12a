"""The gate before a dashboard that asks who one is: nobody passes without a token or a session.

It puts the user into the request's state, for those behind it. A WebSocket that lasts is looked at
again, so that it ends soon after its session or token does. What a user may ask is not decided
here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection

from moe_megatron.webapp.access.tokens import User
from moe_megatron.webapp.access.visitors import Access, RefusedError
from moe_megatron.webapp.guards import POLICY_VIOLATION, App, Message, Receive, Send, refuse

USER = "user"
"""Where in the state of a request its user is."""
LOGIN = "/api/login"
UNREACHABLE = "the database of those who may look cannot be reached; ask again in a moment."
_LOOKS_AGAIN_SECONDS = 30.0


class Gate:
    """Lets those through to another application who may enter.

    Args:
        app: The application behind.
        access: Who may enter.
        shows_page: Whether what is not under /api is a page without data, which all may load.
    """

    def __init__(self, app: App, access: Access, *, shows_page: bool) -> None:
        self._app, self._access, self._shows_page = app, access, shows_page

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] not in ("http", "websocket") or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            user = await self._user(scope)
        except RefusedError as error:
            await refuse(scope, receive, send, str(error), error.status, error.headers)
            return
        scope.setdefault("state", {})[USER] = user
        if scope["type"] == "websocket":
            receive = _while(lambda: self._is_still(scope, user), receive, send)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Message) -> bool:
        if scope["type"] == "websocket":
            return False
        path: str = scope["path"]
        under_api = path == "/api" or path.startswith("/api/")
        return path == LOGIN or (self._shows_page and not under_api)

    async def _user(self, scope: Message) -> User:
        try:
            return await asyncio.to_thread(self._access.user_of, HTTPConnection(scope))
        except SQLAlchemyError as error:
            raise RefusedError(503, UNREACHABLE) from error

    async def _is_still(self, scope: Message, user: User) -> bool:
        try:
            return await self._user(scope) == user
        except RefusedError as error:
            return error.status == 503  # who was let in stays while nobody can be asked


def _while(is_still: Callable[[], Awaitable[bool]], receive: Receive, send: Send) -> Receive:
    """Receive until somebody who was let in no longer may be there."""
    waiting: asyncio.Task[Message] | None = None

    async def received() -> Message:
        nonlocal waiting
        waiting = waiting or asyncio.ensure_future(receive())
        while True:
            try:
                await asyncio.wait([waiting], timeout=_LOOKS_AGAIN_SECONDS)
            except asyncio.CancelledError:
                waiting.cancel()
                raise
            if waiting.done():
                message, waiting = waiting.result(), None
                return message
            if not await is_still():
                waiting.cancel()
                with suppress(Exception):  # it may have gone meanwhile
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}

    return received

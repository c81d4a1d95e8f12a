"""Who may use a server, checked before anything else sees a request.

Who asks by another name than the server's, or from a page of another site, is refused: a page in a
browser must not use a model on this machine. Health is told to everybody.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from moe_megatron.http_server.hosts import KnownHosts, is_same
from moe_megatron.serving.keys import Keys
from moe_megatron.serving.problems import Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_FOR_ALL = frozenset({"/health", "/ready"})
_POLICY_VIOLATION = 1008


class Gate:
    """Lets requests through to another application, or refuses them.

    Args:
        app: The application behind.
        keys: Who may use it.
        names: Names under which this server may be reached, besides addresses and localhost.
    """

    def __init__(self, app: App, keys: Keys, names: Iterable[str] = ()) -> None:
        self._app, self._keys = app, keys
        self._hosts = KnownHosts(names)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        problem = self._problem(scope) if scope["type"] in ("http", "websocket") else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send, problem)

    def _problem(self, scope: Message) -> Problem | None:
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        origin = headers.get(b"origin")
        if not self._hosts.knows(host):
            return Problem(
                403,
                "the Host of this request is not a name of this server; use its address, or name "
                "it with --allow-host when the server is started.",
            )
        if origin is not None and not is_same(origin.lower(), host):
            return Problem(403, "a page of another server may not use this one.")
        if scope["path"] not in _FOR_ALL and not self._keys.allow(
            headers.get(b"authorization", "")
        ):
            return Problem(
                401,
                "this server needs an API key; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


async def _refuse(scope: Message, receive: Receive, send: Send, problem: Problem) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    body = json.dumps(problem.to_json()).encode()
    named = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **problem.headers,
    }
    sent = [(name.lower().encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": sent})
    await send({"type": "http.response.body", "body": body})

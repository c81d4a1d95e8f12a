"""Who may ask the dashboard, and what a page of it may do: checked before anything else sees it.

- The `Host` of a request is an address, localhost, or a name that was given: a page of somebody
  else, whose name was made to point here (DNS rebinding), has another one.
- A WebSocket of a browser comes from this server's own page, by its `Origin`.
- What changes something carries a header that no form or link of another site can set, and, where
  it brings a cookie, the `Origin` that browsers send along.
- Whatever is answered carries headers by which a browser loads and runs nothing but this server's.

It knows neither runs nor what is answered.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from moe_megatron.http_server.hosts import KnownHosts, is_same

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        # A notebook on this machine may show the page in a frame.
        "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
ASKED_BY = (b"x-requested-with", b"moe-megatron")
"""The header of a request that changes something."""
POLICY_VIOLATION = 1008
_LOOKS_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Lets requests through to another application, or refuses them.

    Args:
        app: The application behind.
        names: Names under which this server may be reached, besides addresses and localhost.
    """

    def __init__(self, app: App, names: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = KnownHosts(names)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if not self._hosts.knows(host):
            problem = (
                "the Host of this request is not a name of this server; use its address, or name "
                "it with --allow-host when the dashboard is started."
            )
        elif origin is not None and not is_same(origin.decode("latin-1").lower(), host):
            problem = "a page of another server may not use this one; open the dashboard itself."
        elif scope.get("method", "GET") not in _LOOKS_ONLY and not _is_meant(headers):
            problem = (
                "a request that changes something must carry the header `X-Requested-With: "
                "moe-megatron` and, with a cookie, an Origin, so that no other site can make it; "
                "use the dashboard's page."
            )
        else:
            await self._app(scope, receive, _with_headers(send))
            return
        await refuse(scope, receive, _with_headers(send), problem)


def _is_meant(headers: Mapping[bytes, bytes]) -> bool:
    """Whether no page of another site can have made a request that changes something."""
    name, value = ASKED_BY
    return headers.get(name) == value and (b"cookie" not in headers or b"origin" in headers)


def _with_headers(send: Send) -> Send:
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            message = {**message, "headers": [*given, *extra]}
        await send(message)

    return sent


async def refuse(
    scope: Message,
    receive: Receive,
    send: Send,
    problem: str,
    status: int = 403,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request or WebSocket with nothing but a problem, as JSON where it can be read."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    body = json.dumps({"error": problem}).encode()
    named = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **(headers or {}),
    }
    sent = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})

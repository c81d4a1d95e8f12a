"""Where a browser gives a token and gets a session, as a cookie that no script can read.

Other sites neither send the cookie (SameSite) nor can make these requests: `guards` asks each that
changes something for a header that only a page of this server may set.
"""

import asyncio
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from moe_megatron.webapp.access.gate import LOGIN, USER
from moe_megatron.webapp.access.sessions import SECONDS
from moe_megatron.webapp.access.tokens import KnownToken, User
from moe_megatron.webapp.access.visitors import Access, RefusedError, address_of, cookie_name
from moe_megatron.webapp.bodies import json_body

LOGOUT = "/api/logout"


def user_of(request: Request) -> User | None:
    """Who asks; None where the dashboard asks nobody who they are."""
    found: User | None = getattr(request.state, USER, None)
    return found


def described(user: User | None) -> dict[str, str] | None:
    """A user as JSON."""
    return None if user is None else {"name": user.name, "role": user.role}


def add_login(app: FastAPI, access: Access) -> None:
    """Let browsers log in and out."""

    @app.post(LOGIN)
    async def log_in(request: Request) -> Response:
        token = str((await json_body(request)).get("token", "")).strip()
        try:
            known = await asyncio.to_thread(access.owner_of, token, address_of(request))
        except RefusedError as error:
            return JSONResponse({"error": str(error)}, error.status, headers=error.headers)
        session = await asyncio.to_thread(_enter, access, known, address_of(request))
        response = JSONResponse(described(known.user), headers={"cache-control": "no-store"})
        response.set_cookie(
            cookie_name(request),
            session,
            max_age=int(SECONDS),
            httponly=True,
            samesite="strict",
            # Behind a proxy with TLS, only a browser's own word tells.
            secure=urlsplit(request.headers.get("origin", "")).scheme == "https",
        )
        return response

    @app.post(LOGOUT)
    async def log_out(request: Request) -> Response:
        name, user = cookie_name(request), user_of(request)
        assert user is not None
        session = request.cookies.get(name, "")
        await asyncio.to_thread(_leave, access, user, session, address_of(request))
        response = JSONResponse(None, headers={"cache-control": "no-store"})
        response.delete_cookie(name, httponly=True, samesite="strict")
        return response


def _enter(access: Access, known: KnownToken, address: str) -> str:
    number = access.audit.begin(name=known.user.name, what="log in", address=address)
    session = access.sessions.begin(known)
    access.audit.end(number, "200 a session began")
    return session


def _leave(access: Access, user: User, session: str, address: str) -> None:
    number = access.audit.begin(name=user.name, what="log out", address=address)
    access.sessions.end(session)
    access.audit.end(number, "200 the session ended")

"""What an operator may ask of a run: a checkpoint, or to stop after its step; nothing else.

The run is asked through its folder, as `platform.requests` says. Each request is in the audit log,
with its answer, also that of a viewer who may not.
"""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from moe_megatron.config.checks import join_words
from moe_megatron.errors import MoEError
from moe_megatron.platform import requests
from moe_megatron.webapp.access.login import user_of
from moe_megatron.webapp.access.tokens import User
from moe_megatron.webapp.access.visitors import Access, address_of
from moe_megatron.webapp.bodies import json_body
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.run_reader import RunReader

_LOOKS_ONLY = (
    "this dashboard only looks: a run is asked by an operator, with a token that `moe-megatron "
    "dashboard token NAME --role operator --database FILE` makes."
)
_NOBODY_LISTENS = (
    "the run does not listen: it is just starting or ending, was started by an earlier version or "
    "in a thread, or another machine has its folder. Stop it where it was started."
)


class _NotDoneError(Exception):
    """The run was not asked; its text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def add_asking(app: FastAPI, runs: RunList, access: Access | None) -> None:
    """Let operators ask."""

    @app.post("/api/runs/{run_id}/ask")
    async def ask(run_id: str, request: Request) -> Response:
        user = user_of(request)
        if access is None or user is None:
            raise HTTPException(403, _LOOKS_ONLY)
        what = (await json_body(request)).get("what")
        if what not in requests.REQUESTS:
            raise HTTPException(400, f"what must be {join_words(requests.REQUESTS)}.")
        run = await asyncio.to_thread(runs.reader, run_id)
        address = address_of(request)
        try:
            await asyncio.to_thread(_ask_and_note, access, user, run, what, address)
        except _NotDoneError as error:
            return _json({"error": str(error)}, error.status)
        return _json({"asked": what}, 202)


def _json(found: dict[str, str], status: int) -> Response:
    return JSONResponse(found, status, headers={"cache-control": "no-store"})


def _ask_and_note(
    access: Access, user: User, run: RunReader, what: requests.Request, address: str
) -> None:
    number = access.audit.begin(name=user.name, what=what, run=run.run_dir.name, address=address)
    try:
        _ask(user, run, what)
    except _NotDoneError as error:
        access.audit.end(number, f"{error.status} {error}")
        raise
    access.audit.end(number, "202 asked")


def _ask(user: User, run: RunReader, what: requests.Request) -> None:
    if user.role != "operator":
        raise _NotDoneError(
            403, "a viewer may only look; ask an operator, or for the token of one."
        )
    try:
        run.refresh()
    except MoEError as error:  # a file of it is damaged
        raise _NotDoneError(409, str(error)) from error
    if (state := run.state) != "running":
        raise _NotDoneError(
            409, f"the run does not train ({state}), so there is nothing to ask it."
        )
    try:
        requests.ask(run.run_dir, what)
    except FileNotFoundError as error:
        raise _NotDoneError(409, _NOBODY_LISTENS) from error
    except OSError as error:
        raise _NotDoneError(
            409,
            f"the dashboard may not write into the folder of the run ({error.strerror}); start it "
            "as the user who trains.",
        ) from error

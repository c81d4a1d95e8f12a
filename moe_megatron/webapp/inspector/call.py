"""What a browser sends to the inspector, and what it is answered: POST /api/inspect."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.webapp.bodies import json_body
from moe_megatron.webapp.inspector.inspector import MOST_CHARACTERS, AsksModels
from moe_megatron.webapp.inspector.known_models import KnownModels
from moe_megatron.webapp.run_facts import without_path

_MOST_BYTES = 12 * MOST_CHARACTERS + 1024
"""JSON takes twelve bytes at most for a character."""


def add_inspector(app: FastAPI, inspector: AsksModels, models: KnownModels) -> None:
    """Let browsers ask models."""

    @app.get("/api/models")
    def given() -> Response:
        return _json(models.given())

    @app.post("/api/inspect")
    async def inspect(request: Request) -> Response:
        asked = await json_body(request, _MOST_BYTES)
        try:
            return _json(await asyncio.to_thread(_answer, inspector, models, asked))
        except BackendUnavailableError as error:
            raise HTTPException(503, str(error)) from error
        except asyncio.CancelledError:  # the server ends, and would wait for the thread
            inspector.close()
            raise


def _answer(inspector: AsksModels, models: KnownModels, asked: dict[str, Any]) -> dict[str, Any]:
    text = asked.get("text")
    if not isinstance(text, str):
        raise DataError("text must be the text whose tokens are followed.")
    folder = models.folder(asked)
    try:
        return inspector.ask(folder, text)
    except DataError as error:
        raise DataError(without_path(str(error), folder)) from error


def _json(found: Any) -> Response:
    return JSONResponse(found, headers={"cache-control": "no-store"})

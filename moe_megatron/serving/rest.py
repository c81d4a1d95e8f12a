"""OpenAI's REST API, and what those who run a server ask it: health, readiness, metrics.

Frames of WebSockets are at an address of their own (`frames_api`).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from moe_megatron.reading import parse_json
from moe_megatron.serving import openai_fields as fields
from moe_megatron.serving.frames_api import PATH, answer_frames
from moe_megatron.serving.metrics import ServingMetrics
from moe_megatron.serving.openai_fields import Fields
from moe_megatron.serving.openai_shapes import Shape
from moe_megatron.serving.problems import Problem
from moe_megatron.serving.service import Answer, Piece, Service
from moe_megatron.telemetry.exporter.exposition import CONTENT_TYPE, write_text

MOST_BODY = 4 * 2**20
_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_GONE = 499
"""What nginx calls a client that went away; nobody reads it but the metrics."""
_READERS: Mapping[str, Callable[[Mapping[str, Any]], Fields]] = {
    _COMPLETIONS: fields.completion,
    _CHAT: fields.chat,
}


def make_app(service: Service, metrics: ServingMetrics) -> Starlette:
    """The application; who may use it is checked before (`key_gate`)."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_about(it) for it in service.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models:
            raise Problem(404, f"there is no model {name!r:.80}.", code="model_not_found")
        return JSONResponse(_about(name))

    async def health(request: Request) -> Response:
        fine = service.engine.alive
        return JSONResponse({"status": "ok" if fine else "failed"}, 200 if fine else 503)

    async def ready(request: Request) -> Response:
        fine = service.engine.alive and not service.leaving
        return JSONResponse({"status": "ready" if fine else "not ready"}, 200 if fine else 503)

    async def numbers(request: Request) -> Response:
        return Response(write_text(metrics.registry), media_type=CONTENT_TYPE)

    async def complete(request: Request) -> Response:
        return await _complete(request, service, metrics)

    async def frames(socket: WebSocket) -> None:
        await answer_frames(socket, service, metrics.count)

    return Starlette(
        routes=[
            WebSocketRoute(PATH, frames),
            Route(_COMPLETIONS, complete, methods=["POST"]),
            Route(_CHAT, complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", numbers),
        ],
        exception_handlers={Problem: _problem, HTTPException: _http, Exception: _bug},
    )


async def _complete(request: Request, service: Service, metrics: ServingMetrics) -> Response:
    path = request.url.path

    counted = partial(metrics.count, path)
    try:
        asked = _READERS[path](await _body(request))
        answer = service.answer(asked)
        shape = Shape(path == _CHAT, answer, service.written)
        if asked.stream:
            return StreamingResponse(
                _events(answer, shape, counted, usage=asked.include_usage),
                media_type="text/event-stream",
                headers={"cache-control": "no-store"},
            )
        pieces = await _unless_gone(request, _all(answer))
        if pieces is None:
            counted(_GONE)
            return Response(status_code=_GONE)
    except Problem as problem:
        counted(problem.status)
        raise
    counted(200)
    return JSONResponse(shape.whole(pieces))


async def _events(
    answer: Answer, shape: Shape, counted: Callable[[int], None], *, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; an error after the first of them is one itself."""
    status = _GONE
    try:
        async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
            if shape.chat:
                yield _event(shape.first())
            async for piece in pieces:
                yield _event(shape.chunk(piece))
            if usage:
                yield _event(shape.last())
            yield "data: [DONE]\n\n"
        status = 200
    except Problem as problem:
        status = problem.status
        yield _event(problem.to_json())
    finally:
        answer.close()
        counted(status)


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _all(answer: Answer) -> list[Piece]:
    async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
        return [it async for it in pieces]


async def _unless_gone[T](request: Request, work: Awaitable[T]) -> T | None:
    """The result of some work; None if the client goes away meanwhile, which ends the work."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for it in (task, gone):
            it.cancel()
        with suppress(asyncio.CancelledError, Problem):
            await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            415, f"the content type ({kind!r:.60}) must be application/json; send it as a header."
        )
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise Problem(413, f"this request is larger than {MOST_BODY:,} bytes.")
    try:
        found = parse_json(body)
    except ValueError as error:
        raise Problem(400, f"this request is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise Problem(400, "this request must bring a JSON object.")
    return found


def _about(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "moe-megatron"}


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse(error.to_json(), error.status, error.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is nothing at {request.url.path[:80]}; completions are at {_COMPLETIONS} and "
        f"{_CHAT}.",
        405: f"{request.method} is not for {request.url.path[:80]}.",
    }
    problem = Problem(error.status_code, words.get(error.status_code, str(error.detail)))
    return JSONResponse(problem.to_json(), error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    problem = Problem(500, "this server has failed; its log says why.", kind="server_error")
    return JSONResponse(problem.to_json(), 500)

"""`/v1/stream`: requests and answers as JSON frames of one WebSocket, several at a time.

    -> {"id": 1, "prompt": "Once", "max_tokens": 8}      or "messages", with OpenAI's fields
    <- {"id": 1, "chunk": {...}}                         as a chunk of OpenAI's streams, many
    <- {"id": 1, "done": true, "usage": {...}}           or {"id": 1, "error": {...}}
    -> {"cancel": 1}

A socket that closes ends its requests.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from moe_megatron.reading import parse_json
from moe_megatron.serving.openai_fields import chat, completion
from moe_megatron.serving.openai_shapes import Shape
from moe_megatron.serving.problems import Problem
from moe_megatron.serving.service import Service

PATH = "/v1/stream"
MOST_FRAME = 4 * 2**20
_MOST_REQUESTS = 64

Counted = Callable[[str, int], None]
"""Is told the path and the status of a request."""


async def answer_frames(socket: WebSocket, service: Service, counted: Counted) -> None:
    """Serve one WebSocket until it closes."""
    await socket.accept()
    tasks: dict[Any, asyncio.Task[None]] = {}
    try:
        while True:
            frame = await _frame(socket)
            if isinstance(frame, Problem):
                await _send(socket, None, frame.to_json())
                continue
            if "cancel" in frame:
                task = tasks.pop(_name(frame["cancel"]), None)
                if task is not None:
                    task.cancel()
                continue
            name = _name(frame.pop("id", None))
            tasks = {key: task for key, task in tasks.items() if not task.done()}
            if name in tasks or len(tasks) >= _MOST_REQUESTS:
                problem = Problem(
                    400,
                    "a request of this socket needs an id of its own, and at most "
                    f"{_MOST_REQUESTS} may run; wait for one to finish.",
                )
                await _send(socket, name, problem.to_json())
                continue
            tasks[name] = asyncio.create_task(_answer(socket, service, name, frame, counted))
    except WebSocketDisconnect:
        pass
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _answer(
    socket: WebSocket, service: Service, name: Any, frame: Mapping[str, Any], counted: Counted
) -> None:
    try:
        fields = chat(frame) if "messages" in frame else completion(frame)
        answer = service.answer(fields)
        shape = Shape("messages" in frame, answer, service.written)
        async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                await _send(socket, name, {"chunk": shape.chunk(piece)})
        await _send(socket, name, {"done": True, "usage": shape.usage()})
        counted(PATH, 200)
    except Problem as problem:
        counted(PATH, problem.status)
        await _send(socket, name, problem.to_json())


async def _frame(socket: WebSocket) -> dict[str, Any] | Problem:
    """The next frame; a problem where it is no JSON object."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    try:
        found = parse_json(message.get("text") or message.get("bytes") or b"")
    except ValueError as error:
        return Problem(400, f"this frame is not JSON ({error}).")
    return found if isinstance(found, dict) else Problem(400, "a frame must be a JSON object.")


def _name(given: Any) -> Any:
    """An id that can be compared; what cannot be one is its text."""
    return given if isinstance(given, str | int | None) else json.dumps(given)


async def _send(socket: WebSocket, name: Any, content: Mapping[str, Any]) -> None:
    await socket.send_text(json.dumps({"id": name, **content}))

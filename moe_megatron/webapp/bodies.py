"""What a request brings along: a small JSON object, read no further than that."""

from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException

from moe_megatron.reading import parse_json

MOST_BYTES = 4096


async def json_body(request: Request, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The object in the body of a request.

    Raises:
        HTTPException: It is none, or is larger than that.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise HTTPException(413, f"this request is larger than {most_bytes:,} bytes.")
    try:
        found = parse_json(body.decode())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "this request must bring a JSON object.")
    return found

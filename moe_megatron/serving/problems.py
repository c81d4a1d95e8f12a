"""Mistakes of those who ask, in the shape that OpenAI's clients know."""

from collections.abc import Mapping
from typing import Any

INVALID = "invalid_request_error"


class Problem(Exception):  # noqa: N818  # it is an answer
    """Why a request is not answered.

    Args:
        status: Of HTTP.
        message: What was given, what was needed, what to do.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, where there is one.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code = status, message, kind, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        }


def busy(seconds: int) -> Problem:
    """The queue is full."""
    return Problem(
        429,
        f"as many requests wait as may; try again in {seconds} s.",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def leaving() -> Problem:
    """The server ends."""
    return Problem(
        503,
        "this server is ending and takes no more requests; ask another one.",
        kind="server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )


def late(seconds: float) -> Problem:
    """The request took too long."""
    return Problem(
        504,
        f"this request was not finished within {seconds:g} s, and is given up; ask for fewer "
        "tokens, or for a longer `timeout` (at most the server's --deadline).",
        kind="timeout_error",
        code="deadline_exceeded",
    )


def failed(message: str) -> Problem:
    """The model could not compute it."""
    return Problem(500, message, kind="server_error", code="model_failed")

"""Prompt and completion, as texts or as two lists of messages.

    {"prompt": "The sky is", "completion": " blue."}
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", ...}]}

Only the completion is learned.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moe_megatron.data.instructions.format_registry import instruction_format
from moe_megatron.data.instructions.formats.messages import turns_of
from moe_megatron.data.instructions.row_fields import rows_of, text_of, tools_of
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn

_ANSWERS = ("completion", "response")


def _answer(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _ANSWERS if key in row), None)


@instruction_format(
    "completion",
    "prompt and completion",
    lambda row: "prompt" in row and _answer(row) is not None,
)
def read_completion(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a prompt and its completion.

    Raises:
        BadSampleError: One is missing, or neither text nor messages.
    """
    asked = _turns(row, "prompt", "user")
    answered = _turns(row, _answer(row) or _ANSWERS[0], "assistant")
    if not any(turn.is_answer and (turn.content.strip() or turn.more) for turn in answered):
        raise BadSampleError("no answer: the completion is empty")
    asked = tuple(replace(turn, learned=False) for turn in asked)
    return Conversation(turns=(*asked, *answered), tools=tools_of(row))


def _turns(row: Mapping[str, Any], key: str, role: str) -> tuple[Turn, ...]:
    if isinstance(row.get(key), list | tuple):
        return turns_of(rows_of(row, key))
    return (Turn(role=role, content=text_of(row, key)),)

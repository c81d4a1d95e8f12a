"""ShareGPT: who speaks in `from`, what is said in `value`.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
     "system": "...", "tools": "[...]"}

Calls of tools are turns of their own, as LLaMA-Factory writes them: `function_call`, whose value is
JSON with name and arguments, and `observation`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.data.instructions.format_registry import instruction_format
from moe_megatron.data.instructions.formats.messages import turns_of
from moe_megatron.data.instructions.row_fields import json_of, rows_of, text_of, tools_of
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn

_KEY = "conversations"
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles by their names here; others have the usual names."""


def _fits(row: Mapping[str, Any]) -> bool:
    items = row.get(_KEY)
    first = items[0] if isinstance(items, Sequence) and items else None
    return isinstance(first, Mapping) and "from" in first


@instruction_format("sharegpt", "conversations: a list of from and value", _fits)
def read_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """A conversation of ShareGPT.

    Raises:
        BadSampleError: It is none.
    """
    turns = turns_of([_message(item) for item in rows_of(row, _KEY)])
    if system := text_of(row, "system", optional=True):
        turns = (Turn(role="system", content=system), *turns)
    return Conversation(turns=turns, tools=tools_of(row))


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    role, value = text_of(item, "from"), text_of(item, "value")
    message: dict[str, Any] = {"role": _ROLES.get(role, role), "weight": item.get("weight")}
    if role != "function_call":
        return {**message, "content": value}
    call = json_of(value, "value")
    if not isinstance(call, Mapping | list):
        raise BadSampleError("a function_call is no JSON object")
    return {**message, "content": "", "tool_calls": call if isinstance(call, list) else [call]}

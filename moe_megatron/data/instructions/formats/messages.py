"""OpenAI's messages, with calls of tools; also under the key `conversations`.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
     "tools": [...]}

`weight` 0 keeps an answer from being learned, as in OpenAI's own fine-tuning.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.data.instructions.format_registry import instruction_format
from moe_megatron.data.instructions.row_fields import (
    encodable,
    json_of,
    rows_of,
    text_of,
    tools_of,
    without_nulls,
)
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn

_KEYS = ("messages", "conversations")
_SAME = {"developer": "system", "function": "tool", "human": "user", "model": "assistant"}
"""Other names of roles."""
_PASSED_ON = ("name", "tool_call_id", "reasoning_content", "thinking")


def _key(row: Mapping[str, Any]) -> str | None:
    for key in _KEYS:
        items = row.get(key)
        first = items[0] if isinstance(items, Sequence) and items else None
        if isinstance(first, Mapping) and "role" in first:
            return key
    return None


@instruction_format(
    "messages", "messages: a list of role and content", lambda row: _key(row) is not None
)
def read_messages(row: Mapping[str, Any]) -> Conversation:
    """A conversation of OpenAI's messages.

    Raises:
        BadSampleError: It is none.
    """
    turns = turns_of(rows_of(row, _key(row) or _KEYS[0]))
    return Conversation(turns=turns, tools=tools_of(row))


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The turns of messages.

    Raises:
        BadSampleError: A message has no role, or content that is no text.
    """
    turns = []
    for number, message in enumerate(messages, start=1):
        try:
            turns.append(_turn(message))
        except BadSampleError as problem:
            raise BadSampleError(f"message {number}: {problem}") from None
    return tuple(turns)


def _turn(message: Mapping[str, Any]) -> Turn:
    role = text_of(message, "role")
    more = {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    if calls := _calls(message):
        more["tool_calls"] = calls
    return Turn(
        role=_SAME.get(role, role),
        content=_content(message, optional=bool(calls)),
        more=more,
        learned=message.get("weight") != 0,
    )


def _content(message: Mapping[str, Any], *, optional: bool) -> str:
    """Text, or the text of a list of parts."""
    parts = message.get("content")
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        return text_of(message, "content", optional=optional)
    texts = []
    for part in rows_of(message, "content"):
        if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise BadSampleError("'content' has a part that is no text, and only text is learned")
        texts.append(encodable(part["text"], "content"))
    return "".join(texts)


def _calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of tools, with arguments as objects, as templates want them."""
    given = json_of(message.get("tool_calls"), "tool_calls")
    if not given and message.get("function_call"):
        given = [{"type": "function", "function": message["function_call"]}]
    if not given:
        return []
    return [_call(call) for call in rows_of({"tool_calls": given}, "tool_calls")]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadSampleError("a call of a tool has no name")
    arguments = json_of(function.get("arguments"), "arguments")
    function = {"name": function["name"], "arguments": arguments or {}}
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return without_nulls({"type": "function", **identity, "function": function})

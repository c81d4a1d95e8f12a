"""Two answers to one prompt, of which one is preferred, as texts or as lists of messages.

    {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}

An answer that is a list and does not begin with the assistant is a whole conversation; a prompt
beside it is not looked at. Only where the two differ is learned.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.format_registry import instruction_format
from moe_megatron.data.instructions.formats.messages import turns_of
from moe_megatron.data.instructions.row_fields import rows_of, text_of, tools_of
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Preference, Turn


@instruction_format(
    PREFERENCES,
    "prompt, chosen and rejected",
    lambda row: "chosen" in row and "rejected" in row,
)
def read_preference(row: Mapping[str, Any]) -> Preference:
    """The two conversations of a pair.

    Raises:
        BadSampleError: A part is missing, neither text nor messages, or both answers are the same.
    """
    return Preference(chosen=_conversation(row, "chosen"), rejected=_conversation(row, "rejected"))


def _conversation(row: Mapping[str, Any], key: str) -> Conversation:
    answer = _turns(row, key, "assistant")
    if not answer[0].is_answer:
        return Conversation(turns=answer, tools=tools_of(row))
    if row.get("prompt") is None:
        raise BadSampleError(f"there is no 'prompt', and {key!r} does not begin with one")
    return Conversation(turns=(*_turns(row, "prompt", "user"), *answer), tools=tools_of(row))


def _turns(row: Mapping[str, Any], key: str, role: str) -> tuple[Turn, ...]:
    if isinstance(row.get(key), list | tuple):
        turns = turns_of(rows_of(row, key))
        if not turns:
            raise BadSampleError(f"{key!r} is empty")
        return turns
    return (Turn(role=role, content=text_of(row, key)),)

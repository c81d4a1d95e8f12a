"""Alpaca: an instruction, what it is about, and the answer.

    {"instruction": "Translate to German.", "input": "Good day", "output": "Guten Tag",
     "system": "...", "history": [["earlier question", "earlier answer"]]}

Instruction and input become one turn of the user, an empty line between them. What Alpaca wrote
around them is a matter of the chat template.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.data.instructions.format_registry import instruction_format
from moe_megatron.data.instructions.row_fields import encodable, text_of
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn

_ANSWERS = ("output", "response")


def _answer(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _ANSWERS if row.get(key) is not None), None)


@instruction_format(
    "alpaca",
    "instruction, input and output",
    lambda row: "instruction" in row and any(key in row for key in _ANSWERS),
)
def read_alpaca(row: Mapping[str, Any]) -> Conversation:
    """The conversation of an instruction.

    Raises:
        BadSampleError: There is no instruction or no output, or one is no text.
    """
    asked = [text_of(row, "instruction"), text_of(row, "input", optional=True)]
    turns: list[Turn] = []
    if system := text_of(row, "system", optional=True):
        turns.append(Turn(role="system", content=system))
    turns += _history(row)
    turns.append(Turn(role="user", content="\n\n".join(part for part in asked if part.strip())))
    turns.append(Turn(role="assistant", content=text_of(row, _answer(row) or _ANSWERS[0])))
    if not turns[-1].content.strip():
        raise BadSampleError("no answer: the output is empty")
    return Conversation(turns=tuple(turns))


def _history(row: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for number, pair in enumerate(row.get("history") or (), start=1):
        is_pair = isinstance(pair, Sequence) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise BadSampleError(f"item {number} of 'history' is no pair of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Turn(role=role, content=encodable(text, "history")))
    return turns

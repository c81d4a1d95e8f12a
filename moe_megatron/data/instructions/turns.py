"""The one form that all formats of instruction data are read into: a list of turns.

It knows no format, no template and no tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak. Whether a template has a place for a role is the template's to say."""


class BadSampleError(ValueError):
    """A row that cannot be learned from; the message says why, and never what stands in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side says at once.

    Raises:
        BadSampleError: The role is unknown, or nothing is said.
    """

    role: str
    """One of `ROLES`."""
    content: str
    """The text; "" beside calls of tools."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else a template may read: `tool_calls`, `name`, `reasoning_content`, ..."""
    learned: bool = True
    """Whether to learn it, if it is an answer."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadSampleError(f"the role is none of {', '.join(ROLES)}")

    @property
    def is_answer(self) -> bool:
        """Whether the model is to say this."""
        return self.role == "assistant"

    @property
    def message(self) -> dict[str, Any]:
        """As a message for a chat template."""
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One sample.

    Raises:
        BadSampleError: There is no answer to learn.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the answers may call."""

    def __post_init__(self) -> None:
        answers = [turn for turn in self.turns if turn.is_answer]
        if not answers:
            raise BadSampleError("no answer: there is no turn of the assistant")
        if not any(turn.content.strip() or turn.more.get("tool_calls") for turn in answers):
            raise BadSampleError("no answer: every turn of the assistant is empty")
        if not any(turn.learned for turn in answers):
            raise BadSampleError("no answer to learn: every turn of the assistant has weight 0")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As messages for a chat template."""
        return [turn.message for turn in self.turns]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """A pair: two conversations that begin alike, of which one goes on better.

    Raises:
        BadSampleError: They are the same, or one has no answer of its own.
    """

    chosen: Conversation
    rejected: Conversation

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise BadSampleError("the chosen and the rejected answer are the same")
        alike = self._alike()
        for name in ("chosen", "rejected"):
            try:
                object.__setattr__(self, name, _from_turn(getattr(self, name), alike))
            except BadSampleError as problem:
                raise BadSampleError(f"{name}: {problem}") from None

    def _alike(self) -> int:
        """How many turns both begin with."""
        number = 0
        for one, other in zip(self.chosen.turns, self.rejected.turns, strict=False):
            if one != other:
                break
            number += 1
        return number


def _from_turn(whole: Conversation, first: int) -> Conversation:
    """The conversation, of which only what follows its first turns is learned."""
    shared = (replace(turn, learned=False) for turn in whole.turns[:first])
    return replace(whole, turns=(*shared, *whole.turns[first:]))

"""Answers in the shapes of OpenAI's API: whole ones, and the chunks of streams."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_megatron.serving.asked import Token
from moe_megatron.serving.service import Answer, Piece

Written = Callable[[int], str]
"""From a token to its text."""


@dataclass(slots=True)
class Shape:
    """The shape of one answer.

    Attributes:
        chat: Whether it is one of a chat.
        answer: What is shaped.
        written: Texts of single tokens.
    """

    chat: bool
    answer: Answer
    written: Written
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer in one."""
        choices = [self._whole_choice(it, pieces) for it in sorted({it.index for it in pieces})]
        return {**self._head(""), "choices": choices, "usage": self.usage()}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One part of a stream."""
        told = self._logprobs(piece.tokens)
        choice: dict[str, Any] = {
            "index": piece.index, "logprobs": told, "finish_reason": piece.finish
        }  # fmt: skip
        if self.chat:
            choice["delta"] = {"content": piece.text}
        else:
            choice["text"] = piece.text
        return {**self._head(".chunk"), "choices": [choice]}

    def first(self) -> dict[str, Any]:
        """The chunk of a chat that says who speaks."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self._head(".chunk"), "choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        return {**self._head(".chunk"), "choices": [], "usage": self.usage()}

    def _head(self, part: str) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        name = f"chatcmpl-{self._id}" if self.chat else f"cmpl-{self._id}"
        return {"id": name, "object": kind, "created": self._created, "model": self.answer.model}

    def usage(self) -> dict[str, int]:
        """Numbers of tokens so far."""
        asked, given = self.answer.prompt_tokens, self.answer.completion_tokens
        return {
            "prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given
        }  # fmt: skip

    def _whole_choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        own = [it for it in pieces if it.index == index]
        text = "".join(it.text for it in own)
        told = self._logprobs([token for it in own for token in it.tokens])
        choice: dict[str, Any] = {
            "index": index, "logprobs": told, "finish_reason": own[-1].finish
        }  # fmt: skip
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return choice

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None
        if self.chat:
            return {"content": [self._of_chat(it) for it in tokens]}
        best = [
            {self.written(it.token): it.logprob for it in told.most_probable} for told in tokens
        ]
        return {
            "tokens": [self.written(it.token) for it in tokens],
            "token_logprobs": [it.logprob for it in tokens],
            "top_logprobs": best,
        }

    def _of_chat(self, told: Token) -> dict[str, Any]:
        best = [self._chance(it.token, it.logprob) for it in told.most_probable]
        return {**self._chance(told.token, told.logprob), "top_logprobs": best}

    def _chance(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self.written(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

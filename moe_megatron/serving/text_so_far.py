"""Tokens to text while they come, up to a text that ends the answer.

A character may take several tokens, and a stop text several pieces: what may still become another
text is held back.
"""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
Decode = Callable[[Sequence[int]], str]


class TextSoFar:
    """The text of one answer.

    Args:
        decode: From token ids to text, without special tokens.
        stops: Texts that end the answer, and are not in it.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._start = 0  # tokens before it are told, and those since `_told` not yet
        self._told = 0
        self._held = ""
        self.stopped = False
        """Whether a stop text has come."""

    def add(self, token: int) -> str:
        """The text that is certain with one more token; may be ""."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._told])
        now = self._decode(self._tokens[self._start :])
        if now.endswith(_UNFINISHED) or len(now) <= len(before):
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return self._certain(now[len(before) :])

    def rest(self) -> str:
        """What was held back, at the end."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._told])
        now = self._decode(self._tokens[self._start :])
        text = self._certain(now[len(before) :])
        return text if self.stopped else text + self._held

    def _certain(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

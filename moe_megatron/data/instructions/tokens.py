"""A row to token ids, and which of them are learned.

A token is learned if any of its characters is part of an answer, as in transformers. The text is
encoded whole, because some tokenizers write a word otherwise where a text begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from moe_megatron.config.own_code import load_code, names_code
from moe_megatron.data.instructions.format_registry import reader_named
from moe_megatron.data.instructions.formats import FORMATS
from moe_megatron.data.instructions.spans import text_with_answers
from moe_megatron.data.instructions.stored import LEARNED, REJECTED
from moe_megatron.data.instructions.turns import BadSampleError, Conversation
from moe_megatron.text.chat_template import ChatTemplate, Span
from moe_megatron.text.tokenizer import Tokenizer

__all__ = ["FORMATS", "ChatEncoder", "Piece", "Sample", "learned_tokens"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are learned, or that are not, without a break."""

    ids: tuple[int, ...]
    learned: bool
    rejected: bool = False
    """Whether it belongs to the rejected side of a pair."""

    @property
    def mode(self) -> int:
        """Its mode on disk."""
        return LEARNED * self.learned + REJECTED * self.rejected


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenised conversation; or a pair, the chosen one first."""

    pieces: tuple[Piece, ...]

    @property
    def is_pair(self) -> bool:
        """Whether it is a pair of answers."""
        return self.pieces[-1].rejected

    @property
    def sides(self) -> tuple[tuple[Piece, ...], ...]:
        """The pieces of the sample; of a pair, those of each side."""
        sides = (tuple(it for it in self.pieces if it.rejected is side) for side in (False, True))
        return tuple(side for side in sides if side)

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def learned(self) -> int:
        """Number of tokens that are learned."""
        return sum(len(piece.ids) for piece in self.pieces if piece.learned)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatEncoder:
    """Reads rows of one format with one tokenizer; it can be sent to workers."""

    format: str
    """A registered name, or "path/to/file.py:function"."""
    template: ChatTemplate
    tokenizer: Tokenizer

    def identity(self) -> dict[str, str]:
        """What must not change for prepared data to remain valid, besides the tokenizer."""
        own = load_code(self.format, "format").sha256 if names_code(self.format) else self.format
        return {"format": own, "template": self.template.fingerprint}

    def encode(self, row: Mapping[str, Any]) -> Sample:
        """The tokens of a row.

        Raises:
            BadSampleError: It is not in the format, has no answer, or the template refuses it.
            MoEError: The format cannot be loaded.
        """
        found = reader_named(self.format)(row)
        if isinstance(found, Conversation):
            return Sample(self._pieces(found))
        chosen, rejected = self._pieces(found.chosen), self._pieces(found.rejected)
        if chosen == rejected:  # their texts differ in nothing that a token shows
            raise BadSampleError("the chosen and the rejected answer have the same tokens")
        return Sample((*chosen, *(replace(it, rejected=True) for it in rejected)))

    def _pieces(self, sample: Conversation) -> tuple[Piece, ...]:
        text, spans = text_with_answers(self.template, sample)
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        learned = learned_tokens(offsets, spans)
        if not any(learned[1:]):  # nothing predicts the first one
            raise BadSampleError("no answer: it has no tokens after the first one")
        runs = groupby(zip(ids, learned, strict=True), key=lambda pair: pair[1])
        return tuple(Piece(tuple(it for it, _ in run), is_) for is_, run in runs)


def learned_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens have a character in one of the spans.

    Args:
        offsets: From which character to which each token goes, in order. A tokenizer may leave out
            the white space at the edges of a token: it belongs to the token all the same.
        spans: In order, without overlap.
    """
    learned, end = [], 0
    for first, last in offsets:
        first, end = min(first, end), max(last, end)
        empty = first == end  # such as one that is put in front of a text
        learned.append(
            any(start < end and first < stop for start, stop in spans)
            if not empty
            else any(start < first < stop for start, stop in spans)
        )
    return learned

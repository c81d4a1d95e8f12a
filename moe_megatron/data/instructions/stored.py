"""Prepared instruction data, as it lies on disk: samples of pieces in Megatron's index.

A sample is a document, its pieces are the index's sequences, and the mode of a piece says whether
it is learned (1) or not (0), and whether it belongs to the rejected side of a pair (2 more). A pair
is a document, too: the pieces of the chosen side, then those of the rejected one. Tokens are
memory-mapped. It does not know what was said, and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_megatron.data.index import inspect, read_pieces, read_tokens
from moe_megatron.errors import DataError

LEARNED, REJECTED = 1, 2
"""What the mode of a piece is the sum of."""

Part = tuple[NDArray[np.integer], NDArray[np.bool_]]
"""Token ids, and which of them are learned."""


@dataclass(frozen=True)
class StoredSamples:
    """The samples of a prepared dataset.

    Raises:
        DataError: It holds text or pairs, or is damaged.
    """

    prefix: Path

    def __post_init__(self) -> None:
        _ = self.tokens, self._pieces

    @cached_property
    def tokens(self) -> NDArray[np.integer]:
        """All token ids, one sample after another; read-only."""
        return read_tokens(self.prefix)

    @cached_property
    def _pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
        """Ends of all pieces, in tokens; their modes; and the first piece of each sample."""
        ends, modes, first = read_pieces(self.prefix)
        if (modes >= REJECTED).any():
            raise DataError(
                f"{self.prefix} holds pairs of a chosen and a rejected answer, which only a "
                "training on preferences reads; give conversations or text here."
            )
        return ends, modes, first

    def __len__(self) -> int:
        return len(self._pieces[2]) - 1

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first token of each sample, and the end of the last one."""
        ends, _, first = self._pieces
        return np.concatenate(([0], ends))[first]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self.starts)

    def learned_within(self, most: int) -> NDArray[np.int64]:
        """Learned tokens of each sample that are predicted if it is cut to so many tokens.

        The first token of a sample is not predicted by anything.
        """
        ends, modes, first = self._pieces
        before = np.repeat(self.starts[:-1], np.diff(first))
        starts = np.concatenate(([0], ends[:-1]))
        seen = np.minimum(ends - before, most) - np.clip(starts - before, 1, most)
        totals = np.concatenate(([0], np.cumsum(np.where(modes == 1, np.maximum(seen, 0), 0))))
        return np.diff(totals[first])

    def sample(self, number: int, most: int) -> Part:
        """Token ids of a sample, and which of them are learned, cut to so many tokens."""
        ends, modes, first = self._pieces
        start = int(self.starts[number])
        stop = min(int(self.starts[number + 1]), start + most)
        pieces = slice(int(first[number]), int(first[number + 1]))
        lengths = np.diff(np.concatenate(([start], ends[pieces])))
        learned = np.repeat(modes[pieces] == 1, lengths)[: stop - start]
        return self.tokens[start:stop], learned

    def parts(self, number: int, length: int) -> tuple[Part, ...]:
        """What a sample puts into a row of so many places: itself, cut at its end."""
        return (self.sample(number, length + 1),)

    def places(self, length: int) -> NDArray[np.int64]:
        """Places of such a row that each sample takes: nothing follows its last token."""
        return np.minimum(self.lengths - 1, length)

    def answered(self, length: int) -> NDArray[np.bool_]:
        """Whether each sample has a learned token before the end of such a row."""
        return self.learned_within(length + 1) > 0

    def cut(self, length: int) -> NDArray[np.bool_]:
        """Whether each sample is longer than such a row."""
        return self.lengths - 1 > length


class _Sides(StoredSamples):
    """The sides of pairs as samples: the chosen one of pair i is number 2i, the other one next."""

    @cached_property
    def _pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
        ends, modes, first = read_pieces(self.prefix)
        rejected = modes >= REJECTED
        begins = np.flatnonzero(np.diff(rejected, prepend=False) & rejected)
        sides = np.union1d(first, begins)
        if len(begins) != len(first) - 1 or (sides[::2] != first).any():
            raise DataError(
                f"{self.prefix} does not hold pairs of a chosen and a rejected answer; prepare "
                "them with --format preferences."
            )
        return ends, modes & LEARNED, sides.astype(np.int64)


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of a prepared dataset; of a row, each side of a pair may take half.

    Raises:
        DataError: It holds something else, or is damaged.
    """

    prefix: Path

    def __post_init__(self) -> None:
        _ = self.sides

    @cached_property
    def sides(self) -> StoredSamples:
        """The chosen and the rejected side of each pair, one after another."""
        return _Sides(self.prefix)

    def __len__(self) -> int:
        return len(self.sides) // 2

    def parts(self, number: int, length: int) -> tuple[Part, ...]:
        """What a pair puts into a row of so many places: both sides, each cut at half of it."""
        return tuple(self.sides.sample(2 * number + side, length // 2 + 1) for side in (0, 1))

    def places(self, length: int) -> NDArray[np.int64]:
        """Places of such a row that each pair takes."""
        return self.sides.places(length // 2).reshape(-1, 2).sum(axis=1)

    def answered(self, length: int) -> NDArray[np.bool_]:
        """Whether both sides of each pair have a learned token before they are cut."""
        return self.sides.answered(length // 2).reshape(-1, 2).all(axis=1)

    def cut(self, length: int) -> NDArray[np.bool_]:
        """Whether a side of each pair is longer than half of such a row."""
        return self.sides.cut(length // 2).reshape(-1, 2).any(axis=1)


Stored = StoredSamples | StoredPairs


def opened(prefix: Path) -> Stored:
    """The samples or the pairs of a prepared dataset.

    Raises:
        DataError: It holds text, or is damaged.
    """
    return StoredPairs(prefix) if holds_pairs([prefix]) else StoredSamples(prefix)


def holds_instructions(prefixes: Sequence[Path]) -> bool:
    """Whether prepared datasets hold instruction data, and not text.

    Raises:
        DataError: Some do and others do not, or one is damaged.
    """
    chat = [prefix for prefix in prefixes if inspect(prefix).pieces is not None]
    if chat and len(chat) < len(prefixes):
        text = next(prefix for prefix in prefixes if prefix not in chat)
        raise DataError(
            f"{chat[0]} is instruction data and {text} is text, and one training takes either the "
            "one or the other; leave one out, or write the texts as conversations (a prompt and a "
            "completion)."
        )
    return bool(chat)


def holds_pairs(prefixes: Sequence[Path]) -> bool:
    """Whether prepared instruction data is pairs of answers, and not conversations.

    Raises:
        DataError: Some is and other is not, or one is damaged.
    """
    pairs = [it for it in prefixes if (read_pieces(it)[1] >= REJECTED).any()]
    if pairs and len(pairs) < len(prefixes):
        other = next(prefix for prefix in prefixes if prefix not in pairs)
        raise DataError(
            f"{pairs[0]} holds pairs of answers and {other} conversations, and one training takes "
            "either the one or the other; leave one out."
        )
    return bool(pairs)

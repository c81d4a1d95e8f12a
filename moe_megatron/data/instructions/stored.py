"""Prepared instruction data, as it lies on disk: samples of pieces in Megatron's index.

A sample is a document, its pieces are the index's sequences, and the mode of a piece says whether
it is learned (1) or not (0). Tokens are memory-mapped. It does not know what was said, and writes
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_megatron.data.index import inspect, read_pieces, read_tokens
from moe_megatron.errors import DataError


@dataclass(frozen=True)
class StoredSamples:
    """The samples of a prepared dataset.

    Raises:
        DataError: It holds text, or is damaged.
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
        return read_pieces(self.prefix)

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

    def sample(self, number: int, most: int) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Token ids of a sample, and which of them are learned, cut to so many tokens."""
        ends, modes, first = self._pieces
        start = int(self.starts[number])
        stop = min(int(self.starts[number + 1]), start + most)
        pieces = slice(int(first[number]), int(first[number + 1]))
        lengths = np.diff(np.concatenate(([start], ends[pieces])))
        learned = np.repeat(modes[pieces] == 1, lengths)[: stop - start]
        return self.tokens[start:stop], learned


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

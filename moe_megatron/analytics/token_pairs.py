"""How often each token of the vocabulary went to each expert of one layer, stored sparsely.

It knows ids and counts, neither texts nor models.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

# Pairs of token and expert are merged when more than this many have been added: 128 MB.
_MERGE_AT = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShare:
    """How often one token of the vocabulary went to an expert.

    Attributes:
        token: id in the vocabulary.
        count: number of times it went to the expert.
        share: count over all its occurrences.
        lift: share over the mean share of all tokens; above 1 the expert prefers this token.
    """

    token: int
    count: int
    share: float
    lift: float


def token_text(tokenizer: Any, token: int) -> str:
    """A token in one line; its number without a tokenizer."""
    if tokenizer is None:
        return str(token)
    return str(tokenizer.decode([token])).replace("\n", "\\n").replace("\t", "\\t")


class TokenPairs:
    """Counts pairs of token and expert of one layer."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._waiting: list[Int64Array] = []
        self._size = 0
        self._keys: Int64Array = np.empty(0, dtype=np.int64)  # token * E + expert, sorted
        self._counts: Int64Array = np.empty(0, dtype=np.int64)
        self._seen: dict[int, int] = {}

    def add(self, tokens: Int64Array, chosen: Int64Array) -> None:
        """Counts the experts [tokens, k] of tokens [tokens]; -1 is none."""
        keys = (tokens[:, None] * self._num_experts + chosen)[chosen >= 0]
        self._waiting.append(keys)
        self._size += keys.size
        for token, count in zip(*np.unique(tokens, return_counts=True), strict=True):
            self._seen[int(token)] = self._seen.get(int(token), 0) + int(count)
        if self._size > _MERGE_AT:
            self._merge()

    def joined(self, other: "TokenPairs") -> "TokenPairs":
        """Both counts together."""
        both = TokenPairs(self._num_experts)
        for part in (self, other):
            part._merge()
            for token, count in part._seen.items():
                both._seen[token] = both._seen.get(token, 0) + count
        both._absorb(
            np.concatenate([self._keys, other._keys]),
            np.concatenate([self._counts, other._counts]),
        )
        return both

    def vocabulary(self) -> Int64Array:
        """The tokens that were seen, sorted. [V]"""
        return np.array(sorted(self._seen), dtype=np.int64)

    def seen(self, vocabulary: Int64Array) -> Int64Array:
        """How often each token of a vocabulary occurred. [V]"""
        return np.array([self._seen.get(int(it), 0) for it in vocabulary], dtype=np.int64)

    def table(self, vocabulary: Int64Array) -> Int64Array:
        """How often each token of a sorted vocabulary went to each expert. [V, E]"""
        self._merge()
        counts = np.zeros((len(vocabulary), self._num_experts), dtype=np.int64)
        tokens, experts = np.divmod(self._keys, self._num_experts)
        known = np.isin(tokens, vocabulary)
        counts[np.searchsorted(vocabulary, tokens[known]), experts[known]] = self._counts[known]
        return counts

    def top(self, expert: int, limit: int, min_count: int) -> list[TokenShare]:
        """See `Specialization.top_tokens`."""
        self._merge()
        mine = self._keys % self._num_experts == expert
        tokens = self._keys[mine] // self._num_experts
        counts = self._counts[mine]
        seen = np.array([self._seen[token] for token in tokens.tolist()], dtype=np.int64)
        shares = counts / np.maximum(seen, 1)
        average = counts.sum() / max(sum(self._seen.values()), 1)
        often = np.flatnonzero(seen >= min_count)
        # Of tokens with equal shares, the more frequent one is stronger evidence.
        best = often[np.lexsort((-counts[often], -shares[often]))][:limit]
        return [
            TokenShare(
                token=int(tokens[i]),
                count=int(counts[i]),
                share=float(shares[i]),
                lift=float(shares[i] / average),
            )
            for i in best.tolist()
        ]

    def _merge(self) -> None:
        if self._waiting:
            self._absorb(*np.unique(np.concatenate(self._waiting), return_counts=True))
            self._waiting, self._size = [], 0

    def _absorb(self, keys: Int64Array, counts: Int64Array) -> None:
        """Adds counts of keys, of which some may be known or given twice."""
        weights = np.concatenate([self._counts, counts])
        self._keys, inverse = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        self._counts = np.bincount(inverse, weights=weights).astype(np.int64)

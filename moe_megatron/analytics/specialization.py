"""Which experts serve which domains and tokens, summed over many samples.

`SpecializationCounter` counts batches of labelled samples; `Specialization` is the result. Each
sample belongs to one domain. It does not know where samples come from, and runs no model.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.information import mutual_information, normalized_mutual_information
from moe_megatron.drawing.domains import plot_shares
from moe_megatron.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_SHUFFLES = 20
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Specialization:
    """Experts against domains and tokens.

    Attributes:
        layers: global 1-based numbers of the MoE layers, length L.
        domains: names of the D domains, sorted.
        counts: int64 [L, D, E], assignments from each domain to each expert.
        tokens: int64 [D], tokens of each domain.
        samples: number of samples.
        mutual_information: [L], I(expert; domain) over all assignments, in nats.
        normalized_mutual_information: [L], I(expert; domain) / min(H(expert), H(domain)): 0 if
            experts ignore domains, 1 if the expert determines the domain or the other way round.
        chance: [L], mean of the normalized value after shuffling the samples' labels, which is due
            to other differences between samples. Only values well above it show specialisation.
    """

    layers: tuple[int, ...]
    domains: tuple[str, ...]
    counts: Int64Array
    tokens: Int64Array
    samples: int
    mutual_information: Float64Array
    normalized_mutual_information: Float64Array
    chance: Float64Array
    _pairs: "tuple[_TokenPairs, ...]" = field(repr=False)

    @property
    def domain_load(self) -> Float64Array:
        """l_de = n_de / sum_e n_de, each expert's share of a domain; rows sum to 1. [L, D, E]"""
        return self.counts / self.counts.sum(axis=-1, keepdims=True)

    @property
    def domain_share(self) -> Float64Array:
        """l_de / sum_d l_de, each domain's share of an expert's load. [L, D, E]

        All domains have equal weight. Columns sum to 1; those of an expert without load are NaN.
        """
        load = self.domain_load
        totals = load.sum(axis=1, keepdims=True)
        return load / np.where(totals > 0, totals, np.nan)

    def preferred_domain(self, layer: int) -> list[str | None]:
        """The domain with the largest share of each expert's load; None for one without load."""
        shares = self.domain_share[self._row(layer)]
        best = np.nan_to_num(shares).argmax(axis=0).tolist()
        idle = np.isnan(shares[0]).tolist()
        return [None if empty else self.domains[d] for d, empty in zip(best, idle, strict=True)]

    def top_tokens(
        self, layer: int, expert: int, limit: int = 10, min_count: int = 5
    ) -> list[TokenShare]:
        """The tokens that prefer an expert most.

        Args:
            layer: global layer number.
            expert: number of the expert, from 0.
            limit: largest number of tokens to return.
            min_count: leave out tokens that occurred less often.

        Raises:
            ConfigError: the layer has no router, or there is no such expert.
        """
        row = self._row(layer)
        num_experts = self.counts.shape[-1]
        if not 0 <= expert < num_experts:
            raise ConfigError(f"expert must be 0 to {num_experts - 1}, got {expert}")
        return self._pairs[row].top(expert, limit, min_count)

    def plot(self, save_to: str | Path) -> Path:
        """Draws `domain_share`: a panel per domain, experts across, layers down.

        Args:
            save_to: file to write, a .png, .svg or .pdf.

        Raises:
            DataError: the file cannot be written.
        """
        return plot_shares(self.domain_share, self.layers, self.domains).save(save_to)

    def _row(self, layer: int) -> int:
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise ConfigError(f"layer {layer} has no router; the MoE layers are {known}")
        return self.layers.index(layer)


class SpecializationCounter:
    """Sums up batches of labelled samples."""

    def __init__(self) -> None:
        self._layers: tuple[int, ...] = ()
        self._domains: list[str] = []
        self._tokens: list[int] = []
        self._counts: list[Int64Array] = []  # of each sample, [L, E]
        self._pairs: tuple[_TokenPairs, ...] = ()

    def add(self, batch: BatchAnalysis, domains: list[str]) -> None:
        """Counts a batch whose rows are samples of `domains`."""
        if not self._pairs:
            self._layers = batch.layers
            self._pairs = tuple(_TokenPairs(batch.num_experts) for _ in batch.layers)
        for row, domain in enumerate(domains):
            valid = batch.valid[row]
            chosen = batch.indices[:, row, valid]  # [L, tokens, k]
            self._domains.append(domain)
            self._tokens.append(int(valid.sum()))
            self._counts.append(
                np.stack([np.bincount(it[it >= 0], minlength=batch.num_experts) for it in chosen])
            )
            for pairs, layer in zip(self._pairs, chosen, strict=True):
                pairs.add(batch.input_ids[row, valid], layer)

    def finish(self, seed: int = 0) -> Specialization:
        """Compares the domains.

        Args:
            seed: seed of the shuffles for `chance`.

        Raises:
            DataError: there are fewer than two domains.
        """
        names = tuple(sorted(set(self._domains)))
        if len(names) < 2:
            found = f"only '{names[0]}'" if names else "no sample"
            raise DataError(
                f"specialisation compares domains and needs at least two, got {found}; give "
                "samples of several domains, and a num_samples that reaches them"
            )
        labels = np.array([names.index(domain) for domain in self._domains])
        samples = np.stack(self._counts)  # [samples, L, E]
        counts = _by_domain(samples, labels, len(names))
        rng = np.random.default_rng(seed)
        shuffled = [
            normalized_mutual_information(_by_domain(samples, rng.permutation(labels), len(names)))
            for _ in range(_SHUFFLES)
        ]
        return Specialization(
            layers=self._layers,
            domains=names,
            counts=counts,
            tokens=np.bincount(labels, weights=self._tokens).astype(np.int64),
            samples=len(labels),
            mutual_information=mutual_information(counts),
            normalized_mutual_information=normalized_mutual_information(counts),
            chance=np.mean(shuffled, axis=0),
            _pairs=self._pairs,
        )


def _by_domain(samples: Int64Array, labels: Int64Array, num_domains: int) -> Int64Array:
    """[samples, L, E] summed over the samples of each domain, [L, D, E]."""
    return np.stack([samples[labels == d].sum(axis=0) for d in range(num_domains)], axis=1)


class _TokenPairs:
    """How often each token of the vocabulary went to each expert of one layer, stored sparsely."""

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
            new, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            keys = np.concatenate([self._keys, new])
            weights = np.concatenate([self._counts, counts])
            self._keys, inverse = np.unique(keys, return_inverse=True)
            self._counts = np.bincount(inverse, weights=weights).astype(np.int64)
            self._waiting, self._size = [], 0

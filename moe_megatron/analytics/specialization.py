"""Which experts serve which domains and tokens, summed over many samples.

`SpecializationCounter` counts batches of labelled samples; `Specialization` is the result. Each
sample belongs to one domain. It does not know where samples come from, and runs no model.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.evidence import DomainEvidence, domain_share, weigh_evidence
from moe_megatron.analytics.information import mutual_information, normalized_mutual_information
from moe_megatron.analytics.layer_rows import row_of
from moe_megatron.analytics.token_pairs import TokenPairs, TokenShare, token_text
from moe_megatron.config.arguments import whole
from moe_megatron.drawing import Picture, finished
from moe_megatron.drawing.domains import plot_domains
from moe_megatron.drawing.vocabulary import plot_vocabulary
from moe_megatron.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_SHUFFLES = 20


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
    _counted: "_Counted" = field(repr=False)

    @property
    def domain_load(self) -> Float64Array:
        """l_de = n_de / sum_e n_de, each expert's share of a domain; rows sum to 1. [L, D, E]"""
        return self.counts / self.counts.sum(axis=-1, keepdims=True)

    @property
    def domain_share(self) -> Float64Array:
        """l_de / sum_d l_de, each domain's share of an expert's load. [L, D, E]

        All domains have equal weight. Columns sum to 1; those of an expert without load are NaN.
        """
        return domain_share(self.counts)

    def preferred_domain(self, layer: int) -> list[str | None]:
        """The domain with the largest share of each expert's load; None for one without load."""
        shares = self.domain_share[row_of(layer, self.layers)]
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
        row = row_of(layer, self.layers)
        num_experts = self.counts.shape[-1]
        if not 0 <= expert < num_experts:
            raise ConfigError(f"expert must be 0 to {num_experts - 1}, got {expert}")
        return self._counted.pairs(row).top(expert, limit, min_count)

    def evidence(self, resamples: int = 200, seed: int = 0) -> DomainEvidence:
        """How sure the specialisation in domains is, and how much of it token ids explain.

        Takes seconds; with many layers, experts and samples, minutes.

        Args:
            resamples: how often documents are drawn again, and their labels shuffled.
            seed: of both.

        Raises:
            ConfigError: a number is none.
        """
        return weigh_evidence(
            self._counted.samples,
            self._counted.labels,
            self._counted.documents,
            self._counted.halves,
            layers=self.layers,
            resamples=whole("resamples", resamples, least=20),
            seed=seed,
        )

    def plot(self, save_to: str | Path, *, columns: Literal[1, 2] = 2) -> Path:
        """Draws `domain_share`, and below it what `evidence` says about it.

        The title says "domain" only if domains differ by more than the ids of their tokens explain.

        Args:
            save_to: file to write, a .png, .svg or .pdf.
            columns: of a page that the figure spans, 1 or 2.

        Raises:
            DataError: the file cannot be written.
        """
        shares, evidence = self.domain_share, self.evidence()
        picture = plot_domains(shares, self.layers, self.domains, evidence, columns)
        return picture.save(save_to)

    def plot_vocabulary(
        self,
        layer: int,
        tokenizer: Any = None,
        *,
        limit: int = 6,
        min_count: int = 20,
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draws the tokens that prefer each expert of a layer most, see `top_tokens`.

        Args:
            layer: global layer number.
            tokenizer: what decodes ids; None shows the ids.
            limit: tokens for an expert.
            min_count: leave out tokens that occurred less often.
            columns: of a page that the figure spans; on one there is room for three tokens.
            save_to: file to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: the layer has no router.
            DataError: no token occurred so often, or the file cannot be written.
        """
        experts = range(self.counts.shape[-1])
        row = row_of(layer, self.layers)
        pairs = self._counted.pairs(row)
        found = [pairs.top(it, limit, min_count) for it in experts]
        if not any(found):
            raise DataError(
                f"no token occurred {min_count} times; give more samples, or a smaller min_count."
            )
        words = [[(token_text(tokenizer, it.token), it.share) for it in top] for top in found]
        each = self.counts[row].sum() / self.tokens.sum()
        picture = plot_vocabulary(words, experts, layer, each / len(experts), columns)
        return finished(picture, save_to)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Counted:
    """What was counted, by sample."""

    samples: Int64Array
    """[S, L, E]"""
    labels: Int64Array
    """[S], places in `domains`."""
    documents: list[Int64Array]
    """Token ids of each sample."""
    halves: "tuple[tuple[TokenPairs, ...], tuple[TokenPairs, ...]]"
    """Of every second sample of a domain, and of the others, for each layer."""

    def pairs(self, row: int) -> TokenPairs:
        """Of all samples."""
        first, second = self.halves
        return first[row].joined(second[row])


class SpecializationCounter:
    """Sums up batches of labelled samples."""

    def __init__(self) -> None:
        self._layers: tuple[int, ...] = ()
        self._domains: list[str] = []
        self._of_domain: Counter[str] = Counter()
        self._documents: list[Int64Array] = []
        self._counts: list[Int64Array] = []  # of each sample, [L, E]
        self._halves: tuple[tuple[TokenPairs, ...], tuple[TokenPairs, ...]] = ((), ())

    def add(self, batch: BatchAnalysis, domains: list[str]) -> None:
        """Counts a batch whose rows are samples of `domains`."""
        if not self._layers:
            self._layers = batch.layers
            first, second = (
                tuple(TokenPairs(batch.num_experts) for _ in batch.layers) for _ in range(2)
            )
            self._halves = first, second
        for row, domain in enumerate(domains):
            valid = batch.valid[row]
            chosen = batch.indices[:, row, valid]  # [L, tokens, k]
            half = self._halves[self._of_domain[domain] % 2]
            self._of_domain[domain] += 1
            self._domains.append(domain)
            self._documents.append(batch.input_ids[row, valid])
            self._counts.append(
                np.stack([np.bincount(it[it >= 0], minlength=batch.num_experts) for it in chosen])
            )
            for pairs, layer in zip(half, chosen, strict=True):
                pairs.add(self._documents[-1], layer)

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
            tokens=np.bincount(labels, weights=[len(it) for it in self._documents]).astype(
                np.int64
            ),
            samples=len(labels),
            mutual_information=mutual_information(counts),
            normalized_mutual_information=normalized_mutual_information(counts),
            chance=np.mean(shuffled, axis=0),
            _counted=_Counted(
                samples=samples, labels=labels, documents=self._documents, halves=self._halves
            ),
        )


def _by_domain(samples: Int64Array, labels: Int64Array, num_domains: int) -> Int64Array:
    """[samples, L, E] summed over the samples of each domain, [L, D, E]."""
    return np.stack([samples[labels == d].sum(axis=0) for d in range(num_domains)], axis=1)

"""Whether experts specialise in domains, or merely in the tokens that domains are made of.

Three things look alike in a table of experts by domains: that the router knows the domain, that it
knows the token and domains use other tokens, and that documents differ by chance. They are told
apart by the document, since the tokens of one document depend on each other:

    interval      documents are drawn again within their domains (bootstrap)
    chance        the documents' labels are shuffled
    by_token      every token is routed as its id is on average, whatever the document

The last is the control: n_de = sum_v n_dv p(e | v), where n_dv counts token v in domain d and
p(e | v) is how often v went to e in all documents together. A token that occurs in one domain alone
counts as explained by its id, so that "domain" is claimed too rarely rather than too often.

OLMoE (Muennighoff et al. 2024, arXiv 2409.02060) introduced the measures of domains and vocabulary,
without these three. The module knows counts of documents, not where they come from. L is the number
of layers, E of experts, D of domains, S of documents, V of different tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.bootstrap import basic_interval
from moe_megatron.analytics.information import Counts, normalized_mutual_information
from moe_megatron.analytics.token_pairs import TokenPairs

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_CHANCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainEvidence:
    """What speaks for specialisation in domains, and what else would look the same.

    Differences are normalized mutual information of expert and domain, from 0 to 1.

    Attributes:
        layers: global 1-based numbers of the MoE layers, length L.
        measured: [L], how much the routing of domains differs.
        interval: [2, L], 95 % interval of `measured`, over documents; basic bootstrap, which takes
            off the upward bias of mutual information. May be below 0.
        chance: [L], exceeded by 5 % of shuffles of the documents' labels.
        by_token: [L], how much it would differ if ids of tokens alone decided.
        beyond_token: [L], measured - by_token.
        beyond_interval: [2, L], 95 % interval of that.
        beyond_chance: [L], exceeded by 5 % of shuffles.
        predicted: [L], share of the assignments that the token's id predicts: by the experts that
            the id had most often in the other half of the documents.
        predicted_by_load: [L], the same share if the most loaded experts are predicted always.
        share_error: [L, D, E], standard error of `Specialization.domain_share`.
    """

    layers: tuple[int, ...]
    measured: Float64Array
    interval: Float64Array
    chance: Float64Array
    by_token: Float64Array
    beyond_token: Float64Array
    beyond_interval: Float64Array
    beyond_chance: Float64Array
    predicted: Float64Array
    predicted_by_load: Float64Array
    share_error: Float64Array

    @property
    def found(self) -> tuple[Literal["domain", "token", "nothing"], ...]:
        """What each layer's routing differs by: "domain" only beyond what token ids explain.

        "domain": `beyond_token` is above `beyond_chance`, and its interval above 0. "token": the
        same is true of `measured` alone. "nothing": of neither.
        """
        beyond = (self.beyond_token > self.beyond_chance) & (self.beyond_interval[0] > 0)
        some = (self.measured > self.chance) & (self.interval[0] > 0)
        return tuple(
            "domain" if domain else "token" if token else "nothing"
            for domain, token in zip(beyond.tolist(), some.tolist(), strict=True)
        )


def weigh_evidence(
    samples: Int64Array,
    labels: Int64Array,
    documents: Sequence[Int64Array],
    halves: tuple[Sequence[TokenPairs], Sequence[TokenPairs]],
    *,
    layers: tuple[int, ...],
    resamples: int,
    seed: int,
) -> DomainEvidence:
    """Compares the domains of documents.

    Args:
        samples: [S, L, E], how often each document went to each expert.
        labels: [S], the domain of each document, from 0.
        documents: The token ids of each document.
        halves: Pairs of token and expert of each layer, of two halves of each domain's documents.
        layers: Numbers of the layers.
        resamples: How often documents are drawn again, and labels shuffled.
        seed: Of both.
    """
    whole = [first.joined(second) for first, second in zip(*halves, strict=True)]
    by_id = np.stack([_as_by_id(pairs, documents) for pairs in whole], axis=1)
    counts = samples.astype(np.float64)
    rng = np.random.default_rng(seed)

    def compare(weights_DS: Float64Array) -> Float64Array:
        """[2, L]: as measured, and as token ids alone would have it."""
        return np.stack(
            [normalized_mutual_information(_by_domain(weights_DS, it)) for it in (counts, by_id)]
        )

    one_hot = _one_hot(labels)
    measured, by_token = compare(one_hot)
    drawn = [_draw_again(rng, labels) for _ in range(resamples)]
    again = np.stack([compare(weights) for weights in drawn])
    shuffled = np.stack([compare(one_hot[:, rng.permutation(len(labels))]) for _ in drawn])
    beyond = measured - by_token
    return DomainEvidence(
        layers=layers,
        measured=measured,
        interval=basic_interval(measured, again[:, 0]),
        chance=np.quantile(shuffled[:, 0], _CHANCE, axis=0),
        by_token=by_token,
        beyond_token=beyond,
        beyond_interval=basic_interval(beyond, again[:, 0] - again[:, 1]),
        beyond_chance=np.quantile(shuffled[:, 0] - shuffled[:, 1], _CHANCE, axis=0),
        predicted=_predicted(halves, _hits_by_id),
        predicted_by_load=_predicted(halves, _hits_by_load),
        share_error=_share_error(drawn, counts),
    )


def _one_hot(labels: Int64Array) -> Float64Array:
    """[D, S], 1 where the document is of the domain."""
    domains = np.arange(int(labels.max()) + 1)[:, None]
    return np.where(labels == domains, 1.0, 0.0)


def _draw_again(rng: np.random.Generator, labels: Int64Array) -> Float64Array:
    """[D, S], how often each document is drawn, as many of each domain as there are."""
    weights_DS = np.zeros((int(labels.max()) + 1, len(labels)))
    for domain in range(len(weights_DS)):
        own = np.flatnonzero(labels == domain)
        np.add.at(weights_DS[domain], rng.choice(own, len(own)), 1.0)
    return weights_DS


def _by_domain(weights_DS: Float64Array, table_SLE: Counts) -> Float64Array:
    """Sum of the documents of each domain. [L, D, E]"""
    _, num_layers, num_experts = table_SLE.shape
    sums: Float64Array = weights_DS @ table_SLE.reshape(len(table_SLE), -1)
    return sums.reshape(-1, num_layers, num_experts).transpose(1, 0, 2)


def _share_error(drawn: Sequence[Float64Array], counts: Float64Array) -> Float64Array:
    """Standard deviation of each domain's share of an expert's load. [L, D, E]"""
    total = squares = np.zeros(())
    for weights in drawn:
        shares = domain_share(_by_domain(weights, counts))
        total, squares = total + shares, squares + shares**2
    mean = total / len(drawn)
    error: Float64Array = np.sqrt(np.maximum(squares / len(drawn) - mean**2, 0.0))
    return error


def domain_share(counts: Counts) -> Float64Array:
    """l_de / sum_d l_de with l_de = n_de / sum_e n_de; NaN for an expert without load. [L, D, E]"""
    load = counts / counts.sum(axis=-1, keepdims=True)
    totals = load.sum(axis=1, keepdims=True)
    share: Float64Array = load / np.where(totals > 0, totals, np.nan)
    return share


def _as_by_id(pairs: TokenPairs, documents: Sequence[Int64Array]) -> Float64Array:
    """x_se = sum of p(e | v) over the tokens v of each document. [S, E]"""
    vocabulary = pairs.vocabulary()
    shares_VE = pairs.table(vocabulary) / pairs.seen(vocabulary)[:, None]
    rows = [np.searchsorted(vocabulary, tokens) for tokens in documents]
    return np.stack([shares_VE[it].sum(axis=0) for it in rows])


def _predicted(
    halves: tuple[Sequence[TokenPairs], Sequence[TokenPairs]],
    hits: Callable[[Int64Array, Int64Array, int], float],
) -> Float64Array:
    """Share of the assignments of either half that the other one predicts. [L]"""
    found = []
    for first, second in zip(*halves, strict=True):
        vocabulary = np.union1d(first.vocabulary(), second.vocabulary())
        one, other = first.table(vocabulary), second.table(vocabulary)
        tokens = int((first.seen(vocabulary) + second.seen(vocabulary)).sum())
        assigned = max(int(one.sum() + other.sum()), 1)
        each = max(1, round(assigned / max(tokens, 1)))
        found.append((hits(one, other, each) + hits(other, one, each)) / assigned)
    return np.array(found)


def _hits_by_id(learned_VE: Int64Array, asked_VE: Int64Array, each: int) -> float:
    """Assignments to the `each` experts that a token had most; of equal ones the more loaded."""
    load = learned_VE.sum(axis=0)
    ranked = learned_VE + load / (load.sum() + 1)  # below 1: decides between equal counts only
    best = np.argsort(-ranked, axis=1, kind="stable")[:, :each]
    return float(np.take_along_axis(asked_VE, best, axis=1).sum())


def _hits_by_load(learned_VE: Int64Array, asked_VE: Int64Array, each: int) -> float:
    """Assignments to the `each` most loaded experts."""
    best = np.argsort(-learned_VE.sum(axis=0), kind="stable")[:each]
    return float(asked_VE[:, best].sum())

"""What speaks for domains: planted structure is found, planted absence is not, and slow twins."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.evidence import DomainEvidence
from moe_megatron.analytics.information import normalized_mutual_information
from moe_megatron.analytics.specialization import Specialization, SpecializationCounter
from moe_megatron.errors import ConfigError

NUM_EXPERTS, TOP_K, VOCABULARY, LENGTH = 4, 2, 12, 40


def documents(rng: np.random.Generator, kind: str, number: int) -> tuple[list, Specialization]:
    """Documents of two domains, routed by their domain, by their tokens or by neither.

    "domain": the domain decides, and both use the same tokens. "token": the id decides, and domains
    use tokens unlike often. "document": every document has a preference of its own.
    """
    counter, kept = SpecializationCounter(), []
    low = np.arange(VOCABULARY) % NUM_EXPERTS < 2
    often = {"a": np.where(low, 3, 1), "b": np.where(low, 1, 3)}
    for place in range(number):
        domain = "ab"[place % 2]
        weights = often[domain] if kind == "token" else np.ones(VOCABULARY)
        ids = rng.choice(VOCABULARY, LENGTH, p=weights / weights.sum())
        liked = {
            "domain": np.full(LENGTH, "ab".index(domain)),
            "token": ids % NUM_EXPERTS,
            "document": np.full(LENGTH, rng.integers(NUM_EXPERTS)),
            "nothing": rng.integers(NUM_EXPERTS, size=LENGTH),
        }[kind]
        noise = rng.gumbel(size=(LENGTH, NUM_EXPERTS))
        noise[np.arange(LENGTH), liked] += 1.0 if kind == "document" else 2.0
        chosen = np.argsort(-noise, axis=1)[:, :TOP_K]
        scores = np.zeros((1, 1, LENGTH, NUM_EXPERTS), np.float32)
        batch = BatchAnalysis(
            input_ids=ids[None], layers=(1,), indices=chosen[None, None], scores=scores
        )
        counter.add(batch, [domain])
        kept.append((domain, ids, chosen))
    return kept, counter.finish()


def weighed(kind: str, seed: int = 0, number: int = 40, resamples: int = 60) -> DomainEvidence:
    return documents(np.random.default_rng(seed), kind, number)[1].evidence(resamples)


def test_experts_of_a_domain_are_found_beyond_tokens():
    found = weighed("domain")
    assert found.found == ("domain",)
    assert found.interval[0] > 0.05
    assert found.by_token < 0.2 * found.measured
    assert found.predicted == pytest.approx(found.predicted_by_load, abs=0.05)


def test_experts_of_tokens_are_not_called_experts_of_domains():
    found = weighed("token")
    assert found.found == ("token",)
    assert found.measured > found.chance
    assert found.by_token == pytest.approx(found.measured, rel=0.2)
    assert found.predicted > found.predicted_by_load + 0.1


@pytest.mark.parametrize("kind", ["document", "nothing"])
def test_documents_that_differ_are_not_called_domains(kind):
    found = weighed(kind)
    assert found.found == ("nothing",)
    assert found.beyond_interval[0] <= 0 or found.beyond_token <= found.beyond_chance


def test_each_number_equals_a_slow_one():
    kept, result = documents(np.random.default_rng(3), "token", 14)
    found = result.evidence(resamples=25, seed=5)
    seen, went = Counter(), Counter()
    for _, ids, chosen in kept:
        for token, experts in zip(ids.tolist(), chosen.tolist(), strict=True):
            seen[token] += 1
            went.update((token, expert) for expert in experts)

    def difference(drawn: list, *, by_token: bool) -> float:
        joint = np.zeros((2, NUM_EXPERTS))
        for domain, ids, chosen in drawn:
            for token, experts in zip(ids.tolist(), chosen.tolist(), strict=True):
                for expert in range(NUM_EXPERTS):
                    own = went[token, expert] / seen[token] if by_token else expert in experts
                    joint["ab".index(domain), expert] += own
        return float(normalized_mutual_information(joint))

    measured, by_token = (difference(kept, by_token=it) for it in (False, True))
    assert found.measured == pytest.approx([measured])
    assert found.by_token == pytest.approx([by_token])
    assert found.beyond_token == pytest.approx([measured - by_token])

    rng = np.random.default_rng(5)
    again, beyond = [], []
    for _ in range(25):
        drawn = []
        for domain in "ab":
            own = [place for place, it in enumerate(kept) if it[0] == domain]
            drawn += [kept[place] for place in rng.choice(own, len(own))]
        again.append(difference(drawn, by_token=False))
        beyond.append(again[-1] - difference(drawn, by_token=True))
    for interval, value, values in (
        (found.interval, measured, again),
        (found.beyond_interval, measured - by_token, beyond),
    ):
        low, high = np.quantile(values, (0.025, 0.975))
        assert interval[:, 0] == pytest.approx([2 * value - high, 2 * value - low])

    labels, chance = [it[0] for it in kept], []
    for _ in range(25):
        order = rng.permutation(len(kept))
        shuffled = [(labels[p], *it[1:]) for p, it in zip(order, kept, strict=True)]
        chance.append(difference(shuffled, by_token=False))
    assert found.chance == pytest.approx([np.quantile(chance, 0.95)])


def test_predictions_by_token_equal_slow_ones():
    kept, result = documents(np.random.default_rng(4), "token", 9)
    found = result.evidence(resamples=20)
    hits, by_load, assigned = 0, 0, 0
    places = {"a": 0, "b": 0}
    halves = [], []
    for document in kept:
        halves[places[document[0]] % 2].append(document)
        places[document[0]] += 1
    for learned, asked in (halves, halves[::-1]):
        counts, load = defaultdict(Counter), Counter()
        for _, ids, chosen in learned:
            for token, experts in zip(ids.tolist(), chosen.tolist(), strict=True):
                counts[token].update(experts)
                load.update(experts)
        for _, ids, chosen in asked:
            for token, experts in zip(ids.tolist(), chosen.tolist(), strict=True):
                order = sorted(range(NUM_EXPERTS), key=lambda e: (-load[e], e))
                by_load += len(set(order[:TOP_K]) & set(experts))
                order.sort(key=lambda e: -counts[token][e])  # stable: equal ones by load
                hits += len(set(order[:TOP_K]) & set(experts))
                assigned += TOP_K
    assert found.predicted == pytest.approx([hits / assigned])
    assert found.predicted_by_load == pytest.approx([by_load / assigned])


def test_errors_of_shares_shrink_with_documents():
    few, many = (weighed("nothing", number=n).share_error.mean() for n in (16, 160))
    assert 2.0 < few / many < 5.0  # by sqrt(10)


def test_too_few_resamples_are_refused():
    _, result = documents(np.random.default_rng(0), "nothing", 4)
    with pytest.raises(ConfigError, match="resamples"):
        result.evidence(resamples=3)


@pytest.mark.deep
@pytest.mark.parametrize(("kind", "most"), [("token", 0.07), ("document", 0.07), ("nothing", 0.07)])
def test_domains_are_claimed_wrongly_in_few_of_many_experiments(kind, most):
    claims = [weighed(kind, seed, number=30, resamples=100).found[0] for seed in range(200)]
    assert claims.count("domain") / len(claims) <= most


@pytest.mark.deep
def test_intervals_hold_the_truth():
    """The truth is what very many documents show."""
    truth = weighed("domain", seed=999, number=6000, resamples=20).measured[0]
    inside = 0
    for seed in range(200):
        low, high = weighed("domain", seed, number=30, resamples=100).interval[:, 0]
        inside += low <= truth <= high
    assert 0.88 <= inside / 200 <= 0.99

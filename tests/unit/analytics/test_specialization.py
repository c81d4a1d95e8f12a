from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.analytics import token_pairs
from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.information import normalized_mutual_information
from moe_megatron.analytics.specialization import Specialization, SpecializationCounter
from moe_megatron.errors import ConfigError, DataError

NUM_EXPERTS, TOP_K, LAYERS = 4, 2, (1, 3)


def make_batch(rng: np.random.Generator, domains: list[str], *, separate: bool) -> BatchAnalysis:
    """Samples of different lengths; `separate`: experts 0 and 1 serve "a", 2 and 3 the others."""
    rows, seq = len(domains), 12
    indices = np.full((len(LAYERS), rows, seq, TOP_K), -1)
    for row, domain in enumerate(domains):
        for place in range(rng.integers(3, seq + 1)):
            for layer in range(len(LAYERS)):
                pool = [0, 1] if domain == "a" else [2, 3]
                indices[layer, row, place] = rng.permutation(pool if separate else 4)[:TOP_K]
    scores = np.zeros((*indices.shape[:3], NUM_EXPERTS), np.float32)
    ids = rng.integers(0, 9, (rows, seq))
    return BatchAnalysis(input_ids=ids, layers=LAYERS, indices=indices, scores=scores)


def analyze(separate: bool, num_batches: int = 6) -> tuple[Specialization, list]:
    """The result, and all samples as (domain, token ids, experts [L, tokens, k])."""
    rng, counter, samples = np.random.default_rng(1), SpecializationCounter(), []
    for _ in range(num_batches):
        domains = rng.permutation(["a", "a", "b", "c"]).tolist()
        batch = make_batch(rng, domains, separate=separate)
        counter.add(batch, domains)
        for row, domain in enumerate(domains):
            valid = batch.indices[0, row, :, 0] >= 0
            samples.append((domain, batch.input_ids[row][valid], batch.indices[:, row, valid]))
    return counter.finish(), samples


def test_counts_and_tokens_equal_a_slow_count() -> None:
    found, samples = analyze(separate=False)
    assert found.domains == ("a", "b", "c")
    assert found.samples == len(samples) == 24
    slow = Counter()
    for domain, _, chosen in samples:
        for layer in range(len(LAYERS)):
            for experts in chosen[layer].tolist():
                slow.update((layer, domain, expert) for expert in experts)
    for layer in range(len(LAYERS)):
        for d, domain in enumerate(found.domains):
            assert found.counts[layer, d].tolist() == [
                slow[layer, domain, expert] for expert in range(NUM_EXPERTS)
            ]
    for d, domain in enumerate(found.domains):
        assert found.tokens[d] == sum(len(ids) for name, ids, _ in samples if name == domain)
    assert found.domain_load.sum(axis=2) == pytest.approx(np.ones((2, 3)))
    assert found.domain_share.sum(axis=1) == pytest.approx(np.ones((2, 4)))


def test_experts_of_their_own_domains_stand_far_above_chance() -> None:
    found, _ = analyze(separate=True)
    assert found.preferred_domain(3)[:2] == ["a", "a"]
    assert "a" not in found.preferred_domain(3)[2:]
    assert (found.normalized_mutual_information > 0.5).all()
    assert (found.chance < 0.2).all()
    assert (found.mutual_information > 0).all()


def test_experts_that_ignore_domains_stand_at_chance() -> None:
    found, _ = analyze(separate=False, num_batches=60)
    assert np.allclose(found.normalized_mutual_information, found.chance, atol=0.005)
    assert (found.normalized_mutual_information < 0.01).all()


def test_chance_is_the_mean_over_shuffled_labels() -> None:
    found, samples = analyze(separate=True)
    labels = np.array(["abc".index(domain) for domain, _, _ in samples])
    rng, values = np.random.default_rng(0), []
    for _ in range(20):
        shuffled = rng.permutation(labels)
        joint = np.zeros((len(LAYERS), 3, NUM_EXPERTS), np.int64)
        for label, (_, _, chosen) in zip(shuffled, samples, strict=True):
            for layer in range(len(LAYERS)):
                for expert in chosen[layer].ravel():
                    joint[layer, label, expert] += 1
        values.append(normalized_mutual_information(joint))
    assert found.chance == pytest.approx(np.mean(values, axis=0))


@pytest.mark.parametrize("merge_at", [1, 10**6])
def test_top_tokens_equal_a_slow_count(monkeypatch: pytest.MonkeyPatch, merge_at: int) -> None:
    monkeypatch.setattr(token_pairs, "_MERGE_AT", merge_at)
    found, samples = analyze(separate=False)
    seen, served = Counter(), Counter()
    for _, ids, chosen in samples:
        seen.update(ids.tolist())
        for token, experts in zip(ids.tolist(), chosen[1].tolist(), strict=True):
            served.update((token, expert) for expert in experts)
    top = found.top_tokens(layer=3, expert=2, limit=4, min_count=1)
    average = sum(n for (_, expert), n in served.items() if expert == 2) / sum(seen.values())
    shares = sorted(((served[t, 2] / seen[t], served[t, 2]) for t in seen), reverse=True)
    assert [(token.share, token.count) for token in top] == shares[:4]
    for token in top:
        assert token.count == served[token.token, 2]
        assert token.lift == pytest.approx(token.share / average)
    often = max(seen.values())
    assert all(seen[token.token] == often for token in found.top_tokens(3, 2, min_count=often))


def test_wrong_requests_are_refused() -> None:
    found, _ = analyze(separate=True)
    with pytest.raises(ConfigError, match="layer 2 has no router; the MoE layers are 1, 3"):
        found.preferred_domain(2)
    with pytest.raises(ConfigError, match="expert must be 0 to 3, got 4"):
        found.top_tokens(1, 4)
    counter = SpecializationCounter()
    with pytest.raises(DataError, match="needs at least two, got no sample"):
        counter.finish()
    counter.add(make_batch(np.random.default_rng(0), ["a"], separate=True), ["a"])
    with pytest.raises(
        DataError, match="needs at least two, got only 'a'; give samples of several domains"
    ):
        counter.finish()


def test_idle_expert_has_no_domain() -> None:
    counter = SpecializationCounter()
    rng = np.random.default_rng(0)
    for domain in ("a", "a"):
        counter.add(make_batch(rng, [domain], separate=True), [domain])
    batch = make_batch(rng, ["a"], separate=True)
    counter.add(batch, ["b"])
    found = counter.finish()
    assert found.preferred_domain(1)[2:] == [None, None]


def test_plot_is_a_picture_that_shows_the_shares(tmp_path: Path) -> None:
    found, _ = analyze(separate=True)
    other, _ = analyze(separate=False)
    path = found.plot(tmp_path / "plots" / "domains.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() != other.plot(tmp_path / "other.png").read_bytes()


def test_plot_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        analyze(separate=True)[0].plot(tmp_path / "file" / "domains.png")


def test_slots_that_a_router_left_free_are_no_expert() -> None:
    """As of routers that give tokens different numbers of experts, and some of them none."""
    indices = np.array(
        [[[[0, -1, -1], [-1, -1, -1], [2, 1, -1]], [[3, -1, -1], [3, 2, 0], [-1] * 3]]]
    )
    scores = np.full((1, 2, 3, NUM_EXPERTS), 0.25, np.float32)
    scores[0, 1, 2] = 0.0  # padding
    ids = np.array([[5, 6, 7], [5, 5, 0]])
    batch = BatchAnalysis(input_ids=ids, layers=(1,), indices=indices, scores=scores)
    counter = SpecializationCounter()
    counter.add(batch, ["a", "b"])
    found = counter.finish()
    assert found.tokens.tolist() == [3, 2]
    assert found.counts.tolist() == [[[1, 1, 1, 0], [1, 0, 1, 2]]]
    assert batch.tokens_per_expert.tolist() == [[2, 1, 2, 2]]
    assert [(it.token, it.count) for it in found.top_tokens(1, 3, min_count=1)] == [(5, 2)]
    assert [(it.token, it.count) for it in found.top_tokens(1, 1, min_count=1)] == [(7, 1)]

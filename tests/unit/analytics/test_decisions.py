import numpy as np
import pytest

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.errors import ConfigError


@pytest.fixture
def batch() -> BatchAnalysis:
    """Random decisions of 3 layers with 5 experts, top-2, and some padding."""
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(5), (3, 2, 6)).astype(np.float32)
    indices = np.argsort(-scores, axis=-1)[..., :2]
    padding = np.zeros((2, 6), dtype=bool)
    padding[1, 4:] = True
    scores[:, padding], indices[:, padding] = 0, -1
    ids = rng.integers(0, 50, (2, 6))
    return BatchAnalysis(input_ids=ids, layers=(1, 2, 4), indices=indices, scores=scores)


def slow_pairs(batch: BatchAnalysis, first: int, second: int) -> list[list[int]]:
    """Counts token by token; rows of `indices`."""
    pairs = [[0] * 5 for _ in range(5)]
    for sequence in range(2):
        for place in range(6):
            for i in batch.indices[first, sequence, place].tolist():
                for j in batch.indices[second, sequence, place].tolist():
                    if i >= 0:
                        pairs[i][j] += 1
    return pairs


def test_coactivation_counts_tokens_that_chose_both(batch: BatchAnalysis) -> None:
    for row, layer in enumerate(batch.layers):
        found = batch.coactivation(layer)
        assert found.tolist() == slow_pairs(batch, row, row)
        assert found.diagonal().tolist() == batch.tokens_per_expert[row].tolist()


def test_flow_counts_tokens_from_layer_to_layer(batch: BatchAnalysis) -> None:
    assert batch.flow(1).tolist() == slow_pairs(batch, 0, 1)
    assert batch.flow(2).tolist() == slow_pairs(batch, 1, 2)
    assert batch.flow(1, 4).tolist() == slow_pairs(batch, 0, 2)
    assert batch.flow(1).sum() == 10 * 2 * 2


def test_loads_and_entropies_leave_padding_out(batch: BatchAnalysis) -> None:
    assert batch.valid.sum() == 10
    assert batch.tokens_per_expert.sum(axis=1).tolist() == [20, 20, 20]
    entropies = batch.token_entropy
    assert (entropies[:, 1, 4:] == 0).all()
    slow = -sum(p * np.log(p) for p in batch.scores[2, 0, 3])
    assert entropies[2, 0, 3] == pytest.approx(slow, rel=1e-5)


def test_layers_without_router_are_refused(batch: BatchAnalysis) -> None:
    with pytest.raises(ConfigError, match="layer 3 has no router; the MoE layers are 1, 2, 4"):
        batch.coactivation(3)
    with pytest.raises(ConfigError, match="layer 4 is the last with a router"):
        batch.flow(4)

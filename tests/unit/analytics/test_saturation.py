"""Router saturation: planted agreement is found, and what needs no agreement is known."""

import numpy as np
import pytest

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.saturation import router_saturation
from moe_megatron.drawing.saturation import plot_saturation
from moe_megatron.errors import ConfigError, DataError

ROWS, LENGTH, NUM_EXPERTS, TOP_K = 12, 30, 8, 2


def decided(ids: np.ndarray, logits: np.ndarray) -> BatchAnalysis:
    """The experts of highest logits [layer, row, place, expert]; the last place is padding."""
    indices = np.argsort(-logits, axis=-1)[..., :TOP_K]
    indices[:, :, -1] = -1
    scores = np.zeros(logits.shape, np.float32)
    return BatchAnalysis(input_ids=ids, layers=(2, 4), indices=indices, scores=scores)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, and logits by chance and by id."""
    rng = np.random.default_rng(0)
    ids = rng.integers(6, size=(ROWS, LENGTH))
    chance = rng.normal(size=(2, ROWS, LENGTH, NUM_EXPERTS))
    by_id = rng.normal(size=(6, NUM_EXPERTS))[ids][None].repeat(2, axis=0)
    return ids, chance, by_id


def test_equal_checkpoints_agree_wholly(drawn):
    ids, chance, _ = drawn
    found = router_saturation(decided(ids, chance), decided(ids, chance))
    assert found.share.tolist() == [1.0, 1.0]
    assert found.interval.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert found.chance == pytest.approx(TOP_K / NUM_EXPERTS, abs=0.03)
    assert found.by_token == pytest.approx(TOP_K / NUM_EXPERTS, abs=0.05)


def test_checkpoints_that_share_nothing_agree_by_chance(drawn):
    ids, chance, _ = drawn
    other = np.random.default_rng(1).normal(size=chance.shape)
    found = router_saturation(decided(ids, chance), decided(ids, other))
    low, high = found.interval
    assert ((low < found.chance) & (found.chance < high)).all()


def test_agreement_by_token_ids_is_known_as_such(drawn):
    ids, _, by_id = drawn
    found = router_saturation(decided(ids, by_id), decided(ids, by_id))
    assert found.share.tolist() == found.by_token.tolist() == [1.0, 1.0]
    assert (found.chance < 0.6).all()


def test_shares_equal_slow_ones(drawn):
    ids, chance, by_id = drawn
    other = by_id + 0.8 * chance
    earlier, later = decided(ids, chance + by_id), decided(ids, other)
    found = router_saturation(earlier, later, resamples=30, seed=4)
    for row in range(2):
        tokens = [
            (r, int(ids[r, p]), set(earlier.indices[row, r, p]), set(later.indices[row, r, p]))
            for r in range(ROWS)
            for p in range(LENGTH - 1)
        ]

        def share(pairs):
            pairs = list(pairs)
            return sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs)

        assert found.share[row] == pytest.approx(share((a, b) for *_, a, b in tokens))
        others = [
            (one[2], two[3], one[1] == two[1])
            for i, one in enumerate(tokens)
            for j, two in enumerate(tokens)
            if i != j
        ]
        assert found.chance[row] == pytest.approx(share((a, b) for a, b, _ in others))
        of_id = [
            share((one[2], two[3]) for i, one in enumerate(tokens) if i != j and one[1] == two[1])
            for j, two in enumerate(tokens)
        ]
        assert found.by_token[row] == pytest.approx(np.mean(of_id))
        rng = np.random.default_rng(4)
        again = []
        for weights in rng.multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=30):
            again.append(share((a, b) for r, _, a, b in tokens for _ in range(weights[r])))
        low, high = np.quantile(again, (0.025, 0.975))
        middle = 2 * found.share[row]
        assert found.interval[:, row] == pytest.approx([middle - high, middle - low])


def test_different_tokens_are_refused(drawn):
    ids, chance, _ = drawn
    with pytest.raises(DataError, match="compares decisions of two checkpoints about the same tok"):
        router_saturation(decided(ids, chance), decided(ids + 1, chance))
    with pytest.raises(ConfigError, match="resamples"):
        router_saturation(decided(ids, chance), decided(ids, chance), resamples=1)


def test_the_picture_says_where_it_began_and_ended(drawn):
    ids, chance, by_id = drawn
    last = decided(ids, by_id)
    found = [router_saturation(decided(ids, it), last) for it in (chance, by_id)]
    panel = plot_saturation([10, 20], found, 30).figure.axes[0]
    assert "At step 10 routers chose" in panel.get_title(loc="left")
    assert "at step 20 100%" in panel.get_title(loc="left")
    assert list(panel.lines[0].get_ydata()) == [found[0].share[0], 1.0]

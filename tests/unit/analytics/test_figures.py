"""Figures of decisions: titles and colours are those of the numbers."""

import numpy as np
import pytest

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.specialization import SpecializationCounter
from moe_megatron.errors import ConfigError, DataError


def batch_of(indices: np.ndarray, ids: np.ndarray) -> BatchAnalysis:
    layers = tuple(range(1, len(indices) + 1))
    scores = np.zeros((*indices.shape[:3], 6), np.float32)
    return BatchAnalysis(input_ids=ids, layers=layers, indices=indices, scores=scores)


@pytest.fixture
def partners() -> BatchAnalysis:
    """Two layers of six experts; in the first 0 and 1 are partners, and 2 follows in the second."""
    rng = np.random.default_rng(0)
    logits = rng.gumbel(size=(2, 20, 50, 6))
    logits[0, :8, :, :2] += 3.0
    logits[1, :8, :, 2] += 3.0
    return batch_of(np.argsort(-logits, axis=-1)[..., :2], rng.integers(9, size=(20, 50)))


def test_partners_are_drawn_and_counted(partners, tmp_path):
    picture = partners.plot_coactivation(1, tmp_path / "pairs.svg")
    panel = picture.figure.axes[0]
    (image,) = panel.images
    assert image.get_array()[0, 1] == pytest.approx(partners.coactivation_lift(1)[0, 1])
    lift = partners.coactivation_lift(1)
    assert lift[0, 1] > 1.2
    above = int((np.nan_to_num(lift) > 1).sum() // 2)
    assert f"Layer 1: {above} pairs of experts share more" in panel.get_title(loc="left")
    assert "<svg" in (tmp_path / "pairs.svg").read_text()


def test_a_flow_has_a_band_for_each_pair(partners, tmp_path):
    picture = partners.plot_flow(save_to=tmp_path / "flow.pdf")
    panel = picture.figure.axes[0]
    assert len(panel.collections) == 36
    assert [it.get_text() for it in panel.get_xticklabels()] == ["layer 1", "layer 2"]
    assert (tmp_path / "flow.pdf").read_bytes().startswith(b"%PDF")


def test_what_has_no_pairs_is_refused(partners):
    single = batch_of(partners.indices[..., :1], partners.input_ids)
    with pytest.raises(ConfigError, match="no token visits two experts, so none belong together"):
        single.plot_coactivation(1)
    with pytest.raises(ConfigError, match="a flow needs two layers or more; give layers"):
        partners.plot_flow([1])
    with pytest.raises(ConfigError, match="layer 5 has no router"):
        partners.plot_flow([1, 5])


class Letters:
    """Tokens are letters, and one of them a line end."""

    def decode(self, ids: list[int]) -> str:
        return "$bcdefgh\n"[ids[0]]


def test_the_vocabulary_of_experts_is_written_out(partners, tmp_path):
    counter = SpecializationCounter()
    counter.add(partners, ["a", "b"] * 10)
    found = counter.finish()
    picture = found.plot_vocabulary(1, Letters(), limit=3, save_to=tmp_path / "words.svg")
    panel = picture.figure.axes[0]
    best = found.top_tokens(1, 0, 1, min_count=20)[0]
    assert panel.images[0].get_array()[0, 0] == pytest.approx(best.share)
    assert "(an average token: 33%)" in panel.get_title(loc="left")
    texts = {it.get_text() for it in panel.texts}
    assert {r"\$", r"\n"} & texts
    with pytest.raises(DataError, match="no token occurred 9999 times; give more samples"):
        found.plot_vocabulary(1, min_count=9999)

import json
from pathlib import Path

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.data.index import inspect
from moe_megatron.errors import DataError
from moe_megatron.run.prepared_data import prepare_data
from moe_megatron.text.training import train_tokenizer

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(40)]
LINES = [{"text": text} for text in TEXTS]


@pytest.fixture
def config(tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path / "tok", vocab_size=300).directory
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    overrides = {
        "data.paths": (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")),
        "data.weights": (1.0, 3.0),
        "data.tokenizer": str(tokenizer),
        "data.cache_dir": str(tmp_path / "cache"),
    }
    return apply_overrides(load_config("test_tiny"), overrides)


def test_mock_data_needs_nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    config = apply_overrides(load_config("test_tiny"), {"megatron.mock-data": True})
    data = prepare_data(config)
    assert (data.paths, data.vocab_size, data.cache) == ((), 512, tmp_path / "cache" / "indices")
    assert not data.cache.exists()


def test_paths_are_weights_and_prefixes_by_turns(config, tmp_path):
    data = prepare_data(config, progress=False)
    assert [float(word) for word in data.paths[::2]] == [0.25, 0.75]
    assert all(inspect(Path(prefix)).documents >= 1 for prefix in data.paths[1::2])
    assert data.cache == tmp_path / "cache" / "indices"
    assert (data.vocab_size, data.end_of_document) == (300, 0)


def test_prepared_again_is_the_same(config):
    assert prepare_data(config, progress=False) == prepare_data(config, progress=False)


def test_missing_source_is_explained(config, tmp_path):
    missing = tmp_path / "missing.txt"
    wrong = apply_overrides(config, {"data.paths": (str(missing),), "data.weights": None})
    with pytest.raises(DataError, match=f"data file {missing} does not exist; check the path"):
        prepare_data(wrong)


def test_text_without_a_document_for_validation_is_refused(config, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(TEXTS))
    book_alone = {"data.paths": (str(book),), "data.weights": None}
    one = apply_overrides(config, {**book_alone, "training.eval_interval": 2})
    with pytest.raises(DataError, match=r"has 1 document, .* which is none\. Divide the text into"):
        prepare_data(one, progress=False)
    without = apply_overrides(one, {"training.eval_interval": None})
    assert len(prepare_data(without, progress=False).paths) == 2

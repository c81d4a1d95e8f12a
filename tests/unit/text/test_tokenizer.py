import json
import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from moe_megatron.errors import DataError
from moe_megatron.text.loading import END_OF_TEXT, load_tokenizer
from moe_megatron.text.training import train_tokenizer


@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_survives_the_round_trip(tokenizer, text):
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_training_twice_gives_the_same_tokenizer(tmp_path, texts, tokenizer):
    again = train_tokenizer(texts, tmp_path / "again", vocab_size=300)
    assert again.fingerprint == tokenizer.fingerprint
    assert sorted(path.name for path in again.directory.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_trained_tokenizer_has_the_wanted_size_and_ends_documents(tokenizer):
    assert tokenizer.vocab_size == 300
    assert tokenizer.backend.id_to_token(tokenizer.eod_id) == END_OF_TEXT
    assert tokenizer.encode_batch([END_OF_TEXT]) == [[tokenizer.eod_id]]


def test_too_small_vocabulary_names_the_minimum(tmp_path):
    with pytest.raises(DataError, match=r"vocab_size \(256\) must be at least 257"):
        train_tokenizer(["x"], tmp_path / "t", vocab_size=256)


def test_tokenizer_travels_by_pickle(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(["a fox"]) == tokenizer.encode_batch(["a fox"])
    assert copy.fingerprint == tokenizer.fingerprint


def save(directory, backend, config=None):
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def word_tokenizer(vocabulary):
    return tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))


def test_truncation_and_padding_of_a_published_tokenizer_are_switched_off(tmp_path, tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    loaded = load_tokenizer(save(tmp_path / "t", backend))
    long, short = loaded.encode_batch(["fox " * 50, "x"])
    assert len(long) > 40
    assert len(short) == 1


def test_vocab_size_covers_ids_with_gaps(tmp_path):
    directory = save(tmp_path / "t", word_tokenizer({"?": 0, "</s>": 70_000}))
    assert load_tokenizer(directory).vocab_size == 70_001


@pytest.mark.parametrize("eos", ["stop", {"content": "stop"}])
def test_declared_eos_comes_before_well_known_names(tmp_path, eos):
    backend = word_tokenizer({"?": 0, "</s>": 1, "stop": 2})
    assert load_tokenizer(save(tmp_path / "t", backend, {"eos_token": eos})).eod_id == 2


def test_no_limit_as_transformers_writes_it_is_read(tmp_path):
    config = {"eos_token": "stop", "model_max_length": 1000000000000000019884624838656}
    backend = word_tokenizer({"?": 0, "</s>": 1, "stop": 2})
    assert load_tokenizer(save(tmp_path / "t", backend, config)).eod_id == 2


def test_tokenizer_without_end_of_document_names_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r'no end-of-document token; add .* "eos_token"'):
        load_tokenizer(save(tmp_path / "t", word_tokenizer({"?": 0})))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{", "not a JSON object"),
    ],
)
def test_broken_tokenizer_file_is_named(tmp_path, tokenizer, name, content, message):
    directory = save(tmp_path / "t", tokenizer.backend)
    (directory / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        load_tokenizer(directory)

from functools import partial

import datasets
import pandas as pd
import pytest

from moe_megatron.data.demo_corpus import write_demo_corpus
from moe_megatron.data.index import read_tokens
from moe_megatron.errors import DataError
from moe_megatron.text.training import train_tokenizer
from moe_megatron.training.texts import index_texts, tokenizer_for

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tok", vocab_size=300)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))


def tokens_of(texts, tokenizer, text_key="text"):
    prefix, count = index_texts(texts, tokenizer, text_key)
    tokens = read_tokens(prefix)
    assert len(tokens) == count
    return tokens.tolist()


@pytest.fixture
def expected(tokenizer):
    """The obvious twin: every document, each followed by the end-of-document token."""
    encoded = tokenizer.encode_batch(TEXTS)
    return [token for ids in encoded for token in (*ids, tokenizer.eod_id)]


def test_strings_become_their_tokens_with_ends(tokenizer, expected):
    assert tokens_of(TEXTS, tokenizer) == expected
    assert tokens_of(tuple(TEXTS), tokenizer) == expected
    assert tokens_of((text for text in TEXTS), tokenizer) == expected


def test_dataset_gives_what_its_strings_give(tokenizer, expected):
    dataset = datasets.Dataset.from_dict({"body": TEXTS})
    assert tokens_of(dataset, tokenizer, "body") == expected
    assert tokens_of(dataset.to_iterable_dataset(), tokenizer, "body") == expected


def test_same_texts_are_prepared_once_and_others_anew(tokenizer):
    first, _ = index_texts(TEXTS, tokenizer, "text")
    written = first.with_name(first.name + ".bin").stat().st_mtime_ns
    again, _ = index_texts(list(TEXTS), tokenizer, "text")
    other, _ = index_texts(TEXTS[1:], tokenizer, "text")
    assert again == first
    assert first.with_name(first.name + ".bin").stat().st_mtime_ns == written
    assert other != first


def test_texts_that_join_to_the_same_string_are_different(tokenizer):
    assert (
        index_texts(["ab", "c"], tokenizer, "t")[0] != index_texts(["a", "bc"], tokenizer, "t")[0]
    )


def test_prefix_is_used_as_it_is(tokenizer):
    prefix, count = index_texts(TEXTS, tokenizer, "text")
    assert index_texts(str(prefix), tokenizer, "text") == (prefix, count)


def test_changed_file_is_read_again(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS))
    _, before = index_texts(path, tokenizer, "text")
    path.write_text("\n".join(TEXTS[:5]))
    _, after = index_texts(path, tokenizer, "text")
    assert after < before


def test_demo_is_the_demo_corpus(tokenizer, tmp_path, monkeypatch):
    library = tmp_path / "library"
    library.mkdir()
    text = "def double(number):\n    return 2 * number\n\n" * 5
    (library / "module.py").write_text(
        f'"""Doubles a number, and tells what it has done."""\n{text}'
    )
    small = partial(write_demo_corpus, library=library)
    monkeypatch.setattr("moe_megatron.data.demo.write_demo_corpus", small)
    prefix, _ = index_texts("demo:code", tokenizer, "text")
    assert "return 2 * number" in tokenizer.decode(read_tokens(prefix).tolist())


def test_prefix_of_another_tokenizer_is_refused(tokenizer, tmp_path):
    prefix, _ = index_texts(TEXTS, tokenizer, "text")
    other = train_tokenizer(TEXTS, tmp_path / "other", vocab_size=290)
    with pytest.raises(DataError, match=r"was not tokenised with .*other"):
        index_texts(str(prefix), other, "text")


def test_table_and_list_are_the_same_data(tokenizer):
    frame = pd.DataFrame({"text": TEXTS, "y": 1})
    assert index_texts(frame, tokenizer, "text") == index_texts(TEXTS, tokenizer, "text")


@pytest.mark.parametrize(("damage"), ["zeroed", "cut short", "gone"])
@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_damaged_cache_is_prepared_again(tokenizer, expected, suffix, damage):
    prefix, _ = index_texts(TEXTS, tokenizer, "text")
    path = prefix.with_name(prefix.name + suffix)
    size = path.stat().st_size
    path.unlink()
    if damage != "gone":
        path.write_bytes(bytes(size if damage == "zeroed" else 10))
    assert tokens_of(TEXTS, tokenizer) == expected


def test_tokenizer_larger_than_the_model_names_the_size(tokenizer):
    with pytest.raises(DataError, match=r"has 300 tokens and the model only 256; build the model "):
        tokenizer_for(str(tokenizer.directory), 256)


def test_tokenizer_smaller_than_the_model_is_accepted(tokenizer):
    assert tokenizer_for(str(tokenizer.directory), 512).vocab_size == 300

"""Text in, text out, and the tokenizer that travels with a model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from moe_megatron import MoEModel
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer
from moe_megatron.text.training import train_tokenizer

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}. naive caf\u00e9" for i in range(60)]
PROMPTS = ["the quick", "x", "caf\u00e9 Document 12: "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tok", vocab_size=300)


@pytest.fixture
def model(build: Any, tokenizer: Tokenizer) -> MoEModel:
    made: MoEModel = build(vocab_size=300, num_query_groups=4).eval()
    made.tokenizer = tokenizer
    return made


# --- text ----------------------------------------------------------------------------------------


def test_generated_text_is_that_of_the_generated_tokens(
    model: MoEModel, tokenizer: Tokenizer
) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        expected = tokenizer.decode(model.generate(ids, 8)[0].tolist())
        assert model.generate_text(prompt, 8, stop_at_end=False) == expected
        assert expected.startswith(prompt)


def test_texts_continued_together_are_those_continued_alone(model: MoEModel) -> None:
    assert model.generate_text(PROMPTS, 8) == [model.generate_text(text, 8) for text in PROMPTS]
    assert model.generate_text([], 8) == []


def test_empty_prompt_begins_where_a_document_ended(model: MoEModel, tokenizer: Tokenizer) -> None:
    new = model.generate(torch.tensor([[tokenizer.eod_id]]), 8)[0, 1:].tolist()
    assert model.generate_text("", 8, stop_at_end=False) == tokenizer.decode(new)


def test_text_ends_where_the_model_ends_the_document(model: MoEModel, tokenizer: Tokenizer) -> None:
    ids = torch.tensor([tokenizer.encode("x")])
    new = model.generate(ids, 8)[0, ids.shape[1] :].tolist()
    stop = new.index(new[3])
    model.tokenizer = replace(tokenizer, eod_id=new[3])
    assert model.generate_text("x", 8) == tokenizer.decode([*ids[0].tolist(), *new[: stop + 1]])
    assert model.generate_text("x", 8, stop_at_end=False) == tokenizer.decode(
        [*ids[0].tolist(), *new]
    )


def test_sampling_options_reach_generate(model: MoEModel, tokenizer: Tokenizer) -> None:
    def draw(seed: int, **options: Any) -> str:
        generator = torch.Generator().manual_seed(seed)
        return model.generate_text("x", 8, temperature=1.5, generator=generator, **options)

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1
    assert draw(1, top_k=1) == model.generate_text("x", 8)


@pytest.mark.parametrize("prompt", [7, None, [1, 2], ["a", None], torch.zeros(1, 3), b"bytes"])
def test_prompt_that_is_no_text_is_refused(model: MoEModel, prompt: Any) -> None:
    with pytest.raises(DataError, match=r"a prompt is \w+, not text; give a string or a list of"):
        model.generate_text(prompt)


def test_model_without_tokenizer_says_what_to_do(build: Any) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer, so it .*: set model.tokenizer to a"):
        build().generate_text("x")


# --- what may be a tokenizer ---------------------------------------------------------------------


def test_tokenizer_may_be_a_folder_or_one_of_transformers(
    model: MoEModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path))
    model.tokenizer = str(tokenizer.directory)
    assert model.tokenizer == tokenizer
    model.tokenizer = AutoTokenizer.from_pretrained(tokenizer.directory)
    assert model.tokenizer.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert model.tokenizer.eod_id == tokenizer.eod_id
    model.tokenizer = None
    assert model.tokenizer is None


@pytest.mark.parametrize("given", [7, ["a"], object()])
def test_what_is_no_tokenizer_is_refused(model: MoEModel, given: Any) -> None:
    with pytest.raises(DataError, match=r"a tokenizer cannot be a \w+; give a tokenizer folder"):
        model.tokenizer = given


def test_tokenizer_larger_than_the_model_is_refused(build: Any, tokenizer: Tokenizer) -> None:
    small = build(vocab_size=256)
    with pytest.raises(DataError, match=r"has 300 tokens and the model only 256; build the model"):
        small.tokenizer = tokenizer


# --- it is saved with the model ------------------------------------------------------------------


@pytest.mark.parametrize("format", ["moe_megatron", "hugging_face", "megatron"])
def test_tokenizer_is_saved_with_the_model_and_found_again(
    build: Any, tokenizer: Tokenizer, tmp_path: Path, format: Any
) -> None:
    own = tmp_path / "own"
    tokenizer.save(own)
    (own / "chat_template.jinja").write_text("{{ messages }}")
    model = build(vocab_size=300, num_query_groups=4, ffn_hidden_size=24)
    model.tokenizer = own
    for path in own.iterdir():  # the model does not need its tokenizer's folder any more
        path.unlink()
    model.save_pretrained(tmp_path / "model", format=format)
    loaded = MoEModel.from_pretrained(tmp_path / "model")
    assert loaded.tokenizer == tokenizer
    assert loaded.tokenizer.files["chat_template.jinja"] == b"{{ messages }}"
    assert loaded.generate_text("the", 8) == model.generate_text("the", 8)
    if format == "hugging_face":
        theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert theirs("the quick")["input_ids"] == tokenizer.encode("the quick")


def test_saving_again_replaces_the_tokenizer(model: MoEModel, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert MoEModel.from_pretrained(tmp_path).tokenizer == model.tokenizer


def test_model_without_tokenizer_is_saved_and_loaded_without(build: Any, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    assert MoEModel.from_pretrained(tmp_path).tokenizer is None


def test_tokenizer_that_cannot_be_used_is_no_fault_of_the_model(
    model: MoEModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        loaded = MoEModel.from_pretrained(tmp_path)
    assert "tokenizer.json is not a tokenizer" in caplog.text
    with pytest.raises(ConfigError, match=r"that of its folder cannot be used: .*tokenizer.json"):
        loaded.generate_text("x")


# --- published tokenizers ------------------------------------------------------------------------


def test_what_a_tokenizer_puts_around_a_text_comes_first_and_not_last(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    backend = load_tokenizer(tokenizer.directory).backend
    end = "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eod_id)]
    )
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    wrapped = load_tokenizer(tmp_path)
    assert wrapped.encode("fox") == [tokenizer.eod_id, *tokenizer.encode("fox")]
    assert wrapped.encode(f"fox{end}")[-1] == tokenizer.eod_id
    assert wrapped.encode_batch(["fox"]) == tokenizer.encode_batch(["fox"])

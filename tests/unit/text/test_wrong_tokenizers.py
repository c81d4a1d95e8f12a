"""Tokenizers that cannot be used: one paragraph each that names the file, at once."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models

from moe_megatron.errors import DataError
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

CONFIG = {"eos_token": "</s>"}


def words(vocabulary: dict[str, int], unknown: str = "?") -> bytes:
    return tokenizers.Tokenizer(models.WordLevel(vocabulary, unknown)).to_str().encode()


GOOD = words({"?": 0, "</s>": 1, "a": 2})


def write(folder: Path, content: bytes, config: Any = CONFIG) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _three_gigabytes(folder: Path) -> None:
    write(folder, GOOD)
    os.truncate(folder / "tokenizer.json", 3 * 2**30)


def _large_template(folder: Path) -> None:
    write(folder, GOOD)
    (folder / "chat_template.jinja").touch()
    os.truncate(folder / "chat_template.jinja", 3 * 2**30)


def _large_pieces(folder: Path) -> None:
    (folder / "tokenizer.model").touch()
    os.truncate(folder / "tokenizer.model", 3 * 2**30)


def _pipe(folder: Path) -> None:
    write(folder, GOOD)
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")


def _link(folder: Path) -> None:
    write(folder, GOOD)
    secret = folder.parent / "secret"
    secret.write_text("mine")
    (folder / "chat_template.jinja").symlink_to(secret)


def _pieces(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(bytes(range(200)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "config.json").write_text('{"model_type": "llama"}')


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "3 GB": (_three_gigabytes, r"tokenizer.json cannot be read .* more than 134,217,728 bytes"),
    "3 GB of template": (
        _large_template,
        "chat_template.jinja cannot be read .* more than 134,21",
    ),
    "3 GB of pieces": (_large_pieces, "tokenizer.model cannot be read .* more than 134,217,728"),
    "pipe": (_pipe, "tokenizer_config.json cannot be read .* it is no regular file"),
    "link out": (_link, r"chat_template.jinja is a link to .*secret, which is not in the token"),
    "byte order mark": (
        lambda f: write(f, b"\xef\xbb\xbf" + GOOD),
        "tokenizer.json is text with a byte order mark, not the JSON of a tokenizer; save it as",
    ),
    "gzip": (
        lambda f: write(f, gzip.compress(GOOD)),
        "tokenizer.json is gzip data, not the JSON of a tokenizer",
    ),
    "UTF-16": (
        lambda f: write(f, GOOD.decode().encode("utf-16")),
        "tokenizer.json is text in UTF-16, not the JSON of a tokenizer; save it as UTF-8",
    ),
    "pointer": (
        lambda f: write(f, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "tokenizer.json is a pointer of Git LFS, .* fetch the file that it stands for, with git l",
    ),
    "empty": (lambda f: write(f, b""), "tokenizer.json is not a tokenizer"),
    "zeros": (lambda f: write(f, bytes(100)), "tokenizer.json is not a tokenizer"),
    "other JSON": (lambda f: write(f, b"[]"), "tokenizer.json is not a tokenizer"),
    "no unknown word": (
        lambda f: write(f, words({"</s>": 0, "a": 1}, "[UNK]")),
        r"tokenizer.json has no token for unknown words .*; add its unk_token to the vocabulary",
    ),
    "end that is no token": (
        lambda f: write(f, GOOD, {"eos_token": "<|im_end|>"}),
        r"declares the end-of-document token '<\|im_end\|>', which its vocabulary lacks; copy",
    ),
    "no end": (
        lambda f: write(f, words({"?": 0}), {}),
        'names no end-of-document token; add an existing one as "eos_token"',
    ),
    "SentencePiece alone": (
        _pieces,
        r"holds a SentencePiece model \(tokenizer.model\) and no tokenizer.json, .* take tokenizer",
    ),
    "nothing": (lambda f: None, r"folder .* holds no tokenizer \(no tokenizer.json"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", WRONG)
def test_tokenizer_is_refused_in_a_paragraph(kind: str, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError) as caught:
        load_tokenizer(folder, cache_dir=tmp_path / "cache")
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert len(said) < 900


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/none", "the hub cannot be reached, and the cache does not hold it"),
        ("nothing-like-it", "the hub cannot be reached, and the cache does not hold it"),
        ("some words", "there is no tokenizer folder 'some words', and a hub id looks like"),
        ("x" * 5000, "no tokenizer at 'xxx"),
        ("~nobody-here/t", "there is no tokenizer folder '~nobody-here/t'"),
    ],
    ids=lambda text: text[:20],
)
def test_tokenizer_that_is_nowhere_is_refused_at_once(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(name, cache_dir=tmp_path)
    assert len(str(caught.value)) < 1200


def test_file_of_a_tokenizer_names_its_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert load_tokenizer(tokenizer.directory / "tokenizer.json") == tokenizer


def test_text_without_tokens_is_refused_by_the_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    loaded = load_tokenizer(tmp_path)
    bad = loaded.backend
    bad.model = models.WordLevel({"</s>": 1, "a": 2}, "[UNK]")
    for call in (lambda: loaded.encode("b"), lambda: loaded.encode_batch(["b"])):
        with pytest.raises(DataError, match="has no token for a part of the text"):
            call()

"""The text of a bench: two domains of the demo corpus, equally much of each, and some held out.

It is the same for every router and seed; what a seed changes is its order.
"""

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_megatron.benchmarks.setup import Setup
from moe_megatron.cached import cached_folder
from moe_megatron.data.demo_corpus import DEMO_TEXT_KEY, DOMAINS, write_demo_corpus
from moe_megatron.files import default_cache_dir
from moe_megatron.reading import read_text
from moe_megatron.text.tokenizer import Tokenizer

_FORMAT = 1
"""Increase it when the corpus changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Texts by domain."""

    train: list[str]
    held_out: dict[str, list[str]]

    @property
    def validation(self) -> list[str]:
        """The held-out texts of all domains."""
        return [text for texts in self.held_out.values() for text in texts]

    def held_out_rows(self, tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
        """The held-out texts of each domain one after the other, cut to int64 [rows, length]."""
        found = {}
        for domain, texts in self.held_out.items():
            ids = [it for text in texts for it in [*tokenizer.encode(text), tokenizer.eod_id]]
            rows = max(1, len(ids) // length)
            found[domain] = torch.tensor(ids[: rows * length]).view(rows, -1)
        return found


def corpus_folder() -> Path:
    """The folder with a file of each domain, which the cache holds: the library without its tests.

    Raises:
        DataError: The library has no source, or the cache cannot be written.
    """
    name = f"bench-{sys.implementation.name}-{platform.python_version()}-v{_FORMAT}"
    return cached_folder(default_cache_dir() / name, _write)


def _write(folder: Path) -> None:
    write_demo_corpus(folder, target_bytes=0)


def read_corpus(setup: Setup) -> Corpus:
    """The corpus of a bench, from the cache, where it is built once.

    Raises:
        DataError: It cannot be built.
    """
    train: list[str] = []
    held_out: dict[str, list[str]] = {}
    folder = corpus_folder()
    for domain in DOMAINS:
        texts = _texts(folder / f"{domain}.jsonl")
        held_out[domain] = [it[: setup.held_out_characters] for it in texts[-setup.held_out :]]
        train += _first(texts[: -setup.held_out], setup.train_characters)
    return Corpus(train=train, held_out=held_out)


def _texts(path: Path) -> list[str]:
    # Not splitlines(): strings of JSON may hold other ends of lines.
    return [json.loads(line)[DEMO_TEXT_KEY] for line in read_text(path).split("\n") if line]


def _first(texts: list[str], characters: int) -> list[str]:
    """So many texts that they have this many characters together."""
    found: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        found.append(text[:characters])
        characters -= len(text)
    return found

"""Turns training text given from Python (strings, a path, a dataset) into an indexed dataset.

The result is cached under a hash of text and tokenizer, so using the same data again, in the next
cell or on another rank, costs nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.data.index import inspect, is_prefix
from moe_megatron.data.manifest import PreparedDataset
from moe_megatron.data.prepare import CacheEntry, prepare_dataset
from moe_megatron.data.shards import InMemory, Source
from moe_megatron.data.source import DEMO
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, exclusive_lock
from moe_megatron.model.text import fitting_tokenizer
from moe_megatron.run.prepared_data import open_indexed_writer
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

Texts = Any
"""A list of strings, a path, a hub id, or a `datasets.Dataset` with a text column."""


def tokenizer_for(given: Any, vocab_size: int) -> Tokenizer:
    """A tokenizer, or the demo tokenizer of this size.

    Args:
        given: "demo", or what `fitting_tokenizer` takes.
        vocab_size: Size of the model's vocabulary.

    Raises:
        DataError: The tokenizer cannot be loaded, or has more tokens than the model.
    """
    if given == DEMO:
        return demo_tokenizer(vocab_size=vocab_size)
    return fitting_tokenizer(given, vocab_size)


def index_texts(texts: Texts, tokenizer: Tokenizer, text_key: str) -> tuple[Path, int]:
    """Tokenise texts into an indexed dataset in the cache.

    Returns:
        The dataset's prefix and its number of tokens.

    Raises:
        DataError: There is no text, or it cannot be read.
    """
    if isinstance(texts, str) and not texts.strip():
        raise DataError("train_data is an empty string; give a path, or texts in a list.")
    if isinstance(texts, str | Path) and is_prefix(Path(texts)):
        return Path(texts).absolute(), inspect(Path(texts)).tokens
    source, name = _as_source(texts, text_key)
    key = hashlib.sha256(f"{name}|{tokenizer.fingerprint}|{text_key}".encode()).hexdigest()[:24]
    prepared: PreparedDataset = prepare_dataset(
        [source],
        tokenizer,
        CacheEntry(default_cache_dir() / "python" / key),
        open_indexed_writer,
        text_key=text_key,
        progress=False,
    )
    return prepared.prefix, prepared.tokens


def _as_source(texts: Texts, text_key: str) -> tuple[Source, str]:
    """The texts as a source for `prepare_dataset`, and a cache key that changes with them."""
    if isinstance(texts, Mapping):  # such as a `DatasetDict`, whose keys are not documents
        raise DataError(
            f"train_data is a {type(texts).__name__} of {', '.join(map(repr, texts)) or 'nothing'};"
            " give one of its values, such as train_data['train']."
        )
    if isinstance(texts, str | Path):
        return texts, str(Path(texts).absolute()) if Path(texts).exists() else str(texts)
    if hasattr(texts, "save_to_disk"):
        folder = _saved_dataset(texts)
        return folder, str(folder)
    if hasattr(texts, "column_names"):  # a streaming dataset, which cannot be saved
        texts = [row[text_key] for row in texts]
    if not isinstance(texts, Iterable):
        raise DataError(
            f"train_data is {type(texts).__name__}; give a list of strings, a path, a hub id or a "
            "datasets.Dataset."
        )
    documents = tuple(texts)
    wrong = next((i for i, text in enumerate(documents) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(
            f"train_data[{wrong}] is {type(documents[wrong]).__name__}; every item must be text."
        )
    if not any(documents):
        raise DataError("train_data holds no text; give at least one string that is not empty.")
    digest = hashlib.sha256()
    for text in documents:
        digest.update(f"{len(text)}:".encode() + text.encode("utf-8", "surrogatepass"))
    return InMemory(texts=documents), digest.hexdigest()


def _saved_dataset(dataset: Any) -> Path:
    folder = default_cache_dir() / "python" / f"hf-{dataset._fingerprint}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_suffix(".lock")):
        if not (folder / "state.json").exists():
            dataset.save_to_disk(str(folder))
    return folder

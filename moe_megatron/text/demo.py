"""The demo tokenizer: byte-level BPE whose merges come with this package.

They were learned from the demo corpus by `tools/demo_merges.py`, the most useful first, so that
their first n are what training a smaller vocabulary gives. Nothing is trained or downloaded to
use them, and every machine has the same tokens.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from moe_megatron.cached import cached_folder
from moe_megatron.files import default_cache_dir
from moe_megatron.text.loading import END_OF_TEXT, load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer
from moe_megatron.text.training import (
    DEFAULT_VOCAB_SIZE,
    MIN_VOCAB_SIZE,
    byte_level,
    check_vocab_size,
    write_trained,
)

MERGES = "demo_merges.txt"
# Increase it when the merges or the form of a tokenizer change: it names folders of the cache.
_FORMAT = 1


def demo_tokenizer(
    cache_dir: Path | None = None, *, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> Tokenizer:
    """The demo tokenizer of a size, from a folder in the cache.

    Args:
        cache_dir: Cache root; `default_cache_dir()` by default.
        vocab_size: Number of entries, at least 257. Above 32,768 there are 32,768.

    Raises:
        DataError: `vocab_size` is too small, or the cache cannot be written.
    """
    check_vocab_size(vocab_size)
    size = min(vocab_size, MIN_VOCAB_SIZE + len(_merges()))
    root = default_cache_dir() if cache_dir is None else cache_dir
    target = root / "tokenizers" / f"demo-{size}-v{_FORMAT}"
    return load_tokenizer(cached_folder(target, lambda folder: write_trained(_built(size), folder)))


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    lines = (files("moe_megatron.text") / MERGES).read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" ") for line in lines)
    return tuple((first, second) for first, second in pairs)


def _built(vocab_size: int) -> tokenizers.Tokenizer:
    """What training on the demo corpus gives: the end of a text, all bytes, and the merges."""
    merges = _merges()[: vocab_size - MIN_VOCAB_SIZE]
    words = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [first + second for first, second in merges]
    backend = byte_level(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend

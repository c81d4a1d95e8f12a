"""Turns what a person has in a notebook (strings, a table, a path, ...) into an indexed dataset.

What holds text is known by `data.objects`. The result is cached under a hash of text and
tokenizer, so using the same data again, in the next cell or on another rank, costs nothing.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_megatron.config.data import TEXT
from moe_megatron.data.demo import ensure_demo
from moe_megatron.data.demo_corpus import DEMO_TEXT_KEY
from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.row_objects import row_sources
from moe_megatron.data.instructions.stored import holds_instructions, opened
from moe_megatron.data.instructions.suitable import check_kind
from moe_megatron.data.objects.reading import Ask, source_of
from moe_megatron.data.prepare import CacheEntry, prepare_dataset
from moe_megatron.data.shards import InMemory, Source, expand_sources
from moe_megatron.data.source import DEMO, domains_of, parse_blend, prepared_part
from moe_megatron.files import default_cache_dir, user_path
from moe_megatron.live.watching import is_watched
from moe_megatron.mcore import world
from moe_megatron.model.text import fitting_tokenizer
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Texts = Any
"""Strings in a list, a table with a column of text, a path, a hub id, ...: see `data.objects`."""


def tokenizer_for(given: Any, vocab_size: int) -> Tokenizer:
    """A tokenizer, or the demo tokenizer of this size.

    Args:
        given: "demo", or what `fitting_tokenizer` takes.
        vocab_size: Size of the model's vocabulary.

    Raises:
        DataError: The tokenizer cannot be loaded, or has more tokens than the model.
    """
    if isinstance(given, str) and given == DEMO:
        return demo_tokenizer(vocab_size=vocab_size)
    return fitting_tokenizer(given, vocab_size)


def index_data(
    given: Texts,
    tokenizer: Tokenizer,
    text_key: str,
    data_format: str = TEXT,
    name: str = "train_data",
    *,
    length: int,
) -> tuple[Path, int]:
    """Tokenise texts or conversations into an indexed dataset in the cache.

    Args:
        given: What holds them.
        tokenizer: Turns them into token ids.
        text_key: Column or key of the text.
        data_format: "text", or a format of conversations.
        name: How the caller calls them, for messages.
        length: Tokens of a row of training.

    Returns:
        The dataset's prefix, and how many tokens a pass over it takes: of conversations, those of
        all rows.

    Raises:
        DataError: There is no text or conversation, or it cannot be read.
    """
    if data_format == TEXT:
        prefix, tokens = index_texts(given, tokenizer, text_key, name)
    else:
        prefix, tokens = index_conversations(given, tokenizer, data_format, name), 0
    check_kind([prefix], data_format)
    if not holds_instructions([prefix]):
        return prefix, tokens
    packed = packed_rows(opened(prefix), length)
    for line in packed.lines if world.rank() == 0 else ():
        logger.warning("%s: %s", name, line)
    return prefix, len(packed.rows) * length


def index_conversations(given: Texts, tokenizer: Tokenizer, data_format: str, name: str) -> Path:
    """Tokenise conversations into an indexed dataset in the cache.

    Args:
        given: What holds them.
        tokenizer: Turns them into token ids, by its chat template.
        data_format: Their format.
        name: How the caller calls them, for messages.

    Returns:
        The dataset's prefix.

    Raises:
        DataError: There is no conversation, the format is not known, or the tokenizer has no chat
            template.
    """
    sources = row_sources(given, Ask(name=name))
    if len(sources) == 1 and not isinstance(sources[0], InMemory):
        (entry,) = parse_blend([str(sources[0])])
        if entry.kind == "prefix":
            return prepared_part(Path(entry.value), tokenizer)[0]
    encoder = chat_encoder(data_format, tokenizer, expand_sources(sources))
    key = _key(sources, tokenizer.fingerprint, *encoder.identity().values())
    return prepare_dataset(
        sources,
        encoder,
        _cached(f"chat-{key}"),
        open_instruction_writer,
        progress=is_watched() and name,
    ).prefix


def index_texts(
    texts: Texts, tokenizer: Tokenizer, text_key: str, name: str = "train_data"
) -> tuple[Path, int]:
    """Tokenise texts into an indexed dataset in the cache.

    Args:
        texts: What holds them.
        tokenizer: Turns them into token ids.
        text_key: Column or key of the text.
        name: How the caller calls them, for messages.

    Returns:
        The dataset's prefix and its number of tokens.

    Raises:
        DataError: There is no text, or it cannot be read.
    """
    sources = source_of(texts, Ask(name=name, text_key=text_key))
    if len(sources) == 1 and not isinstance(sources[0], InMemory):
        place = sources[0] if isinstance(texts, str) else user_path(sources[0]).absolute()
        (entry,) = parse_blend([str(place)])
        if entry.kind == "prefix":
            return prepared_part(Path(entry.value), tokenizer)
        if entry.kind == "demo":
            demo = ensure_demo(default_cache_dir(), open_indexed_writer)
            sources = tuple(demo.corpus[domain] for domain in domains_of(entry))
            text_key = DEMO_TEXT_KEY
    prepared = prepare_dataset(
        sources,
        tokenizer,
        _cached(_key(sources, tokenizer.fingerprint, text_key)),
        open_indexed_writer,
        text_key=text_key,
        progress=is_watched() and name,
    )
    return prepared.prefix, prepared.tokens


def _cached(name: str) -> CacheEntry:
    return CacheEntry(default_cache_dir() / "python" / name)


def _key(sources: Sequence[Source], *how: str) -> str:
    """What names the datasets of some sources in the cache, by all that decides their content."""
    parts = [*map(_identity, sources), *how]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _identity(source: Source) -> str:
    """What names a source in the cache; whether a file has changed is noticed there."""
    if isinstance(source, InMemory):
        return source.digest()
    path = user_path(source)
    return str(path.absolute()) if os.path.exists(path) else str(source)

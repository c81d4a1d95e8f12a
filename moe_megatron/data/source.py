"""Resolves the entries of `data.paths` into the indexed datasets that Megatron trains on.

An entry is "demo", "demo:code", "demo:prose", the prefix of an indexed dataset, a file, a
directory or a hub id. Entries are blended by weight; text that is not tokenised yet is prepared in
the cache. Write ./demo for a file that is really called demo. This module only decides; `demo` and
`prepare` do the work.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_megatron.config.data import TEXT, DataConfig
from moe_megatron.data.demo import DemoData, ensure_demo
from moe_megatron.data.demo_corpus import DEMO_TEXT_KEY, DOMAINS
from moe_megatron.data.index import inspect, is_prefix
from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.manifest import read_manifest
from moe_megatron.data.prepare import CacheEntry, prepare_dataset
from moe_megatron.data.shards import expand_sources
from moe_megatron.data.writer import OpenWriter
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import default_cache_dir, readable_name, user_path
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

DEMO = "demo"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlendEntry:
    """One entry of a blend; `weight` is normalised, or None to weigh it by its tokens."""

    kind: Literal["demo", "prefix", "text"]
    value: str
    """Domain of the demo corpus ("" for all), dataset prefix, or source of text."""
    weight: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedBlend:
    """The prepared datasets, as Megatron's dataset builder needs them."""

    prefixes: tuple[Path, ...]
    weights: tuple[float, ...]
    """One per prefix; they sum to 1."""
    tokens: tuple[int, ...]
    """One number per prefix."""
    entries: tuple[int, ...]
    """From which entry each prefix is, from 0."""
    tokenizer_dir: Path


def parse_blend(
    paths: Sequence[str], weights: Sequence[float] | None = None
) -> tuple[BlendEntry, ...]:
    """Classify the entries of a blend. It checks which files exist, but reads and writes nothing.

    Args:
        paths: At least one entry.
        weights: None, or a positive number per entry.

    Raises:
        ConfigError: If there is no entry, a weight is not positive, or their numbers differ.
        DataError: If an entry names half a dataset or an unknown domain.
    """
    if not paths:
        raise ConfigError(f'data.paths is empty; name text files, or "{DEMO}".')
    shares: list[float | None] = [None] * len(paths)
    if weights is not None:
        if len(weights) != len(paths):
            raise ConfigError(
                f"{len(weights)} weights for {len(paths)} data paths; give one weight per path, or "
                "none to blend in proportion to size."
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"data weights {tuple(weights)} must be positive; drop unused paths.")
        shares = [weight / math.fsum(weights) for weight in weights]
    return tuple(map(_entry, paths, shares))


def _entry(path: str, weight: float | None) -> BlendEntry:
    name, _, domain = path.partition(":")
    if name == DEMO:
        if domain and domain not in DOMAINS:
            raise DataError(
                f"the demo corpus has no domain {domain!r}; use "
                f"{', '.join(f'{DEMO}:{known}' for known in DOMAINS)} or {DEMO}."
            )
        return BlendEntry(kind="demo", value=domain, weight=weight)
    # Megatron names a dataset by its prefix; the name of one of its files is accepted as well.
    prefix = user_path(re.sub(r"\.(bin|idx)$", "", path))
    if is_prefix(prefix):
        return BlendEntry(kind="prefix", value=str(prefix.absolute()), weight=weight)
    return BlendEntry(kind="text", value=path, weight=weight)


def resolve_blend(
    config: DataConfig,
    open_writer: OpenWriter,
    *,
    open_samples: OpenWriter | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> ResolvedBlend:
    """Prepare every entry that is not prepared yet, and compute the weights.

    Many processes may call it at once; it returns quickly when there is nothing to do. Without
    weights, each entry is weighted by its number of tokens; the domains of "demo" share the weight
    of their entry in the same way.

    Args:
        config: Paths, weights, tokenizer, text key and cache directory.
        open_writer: Opens indexed datasets; called only to build one.
        open_samples: Opens those of conversations, which cannot be read without it.
        num_workers: Number of processes that tokenise; None chooses by size.
        progress: Show progress on stderr.

    Raises:
        ConfigError: If the weights are invalid.
        DataError: If an entry or the tokenizer cannot be read, or the cache cannot be written.
    """
    entries = parse_blend(config.paths, config.weights)
    if config.format != TEXT and any(entry.kind == "demo" for entry in entries):
        raise DataError(
            f"the demo corpus is text, and data.format is {config.format!r}; leave it at {TEXT!r}, "
            "or give conversations in data.paths."
        )
    cache = default_cache_dir()
    if config.cache_dir is not None:
        cache = user_path(config.cache_dir).absolute()
    own_tokenizer = config.tokenizer != DEMO
    demo: DemoData | None = None
    if any(entry.kind == "demo" for entry in entries):
        demo = ensure_demo(cache, open_writer, vocab_size=config.vocab_size, progress=progress)
    if demo is not None and not own_tokenizer and all(entry.kind == "demo" for entry in entries):
        # The usual first run: everything is known without loading the tokenizer.
        parts = [_demo_parts(entry, demo) for entry in entries]
        return _blend(entries, parts, demo.tokenizer_dir)
    if own_tokenizer:
        info = load_tokenizer(config.tokenizer, cache_dir=cache)
    else:
        info = demo_tokenizer(cache, vocab_size=config.vocab_size)

    def prepare(text: str, text_key: str) -> Part:
        reader: Tokenizer | ChatEncoder = info
        writer, of_kind = open_writer, text_key
        if config.format != TEXT:
            assert open_samples is not None
            reader = chat_encoder(config.format, info, expand_sources([text]))
            writer, of_kind = open_samples, f"{reader.format} {reader.template.fingerprint}"
        dataset = prepare_dataset(
            [text],
            reader,
            CacheEntry(cached_prefix(cache, text, of_kind, info)),
            writer,
            num_workers=num_workers,
            text_key=text_key,
            max_bad_line_ratio=config.max_bad_line_ratio,
            progress=progress,
        )
        return dataset.prefix, dataset.tokens

    parts = []
    for entry in entries:
        if entry.kind == "prefix":
            parts.append([prepared_part(Path(entry.value), info)])
        elif entry.kind == "text":
            parts.append([prepare(entry.value, config.text_key)])
        else:
            assert demo is not None
            if own_tokenizer:
                corpus = [demo.corpus[domain] for domain in domains_of(entry)]
                parts.append([prepare(str(path), DEMO_TEXT_KEY) for path in corpus])
            else:
                parts.append(_demo_parts(entry, demo))
    return _blend(entries, parts, info.directory)


Part = tuple[Path, int]
"""Prefix and number of tokens."""


def domains_of(entry: BlendEntry) -> tuple[str, ...]:
    """The domains of the demo corpus that an entry names."""
    return (entry.value,) if entry.value else DOMAINS


def _demo_parts(entry: BlendEntry, demo: DemoData) -> list[Part]:
    return [(demo.prefixes[domain], demo.tokens[domain]) for domain in domains_of(entry)]


def prepared_part(prefix: Path, tokenizer: Tokenizer) -> Part:
    """A dataset that the user has prepared, with its number of tokens.

    Raises:
        DataError: Its manifest names another tokenizer, or it is damaged.
    """
    manifest = read_manifest(prefix)
    theirs = manifest and manifest.get("tokenizer")
    if isinstance(theirs, dict) and theirs.get("fingerprint") != tokenizer.fingerprint:
        raise DataError(
            f"{prefix} was not tokenised with {tokenizer.directory}; set data.tokenizer to the "
            "tokenizer it was prepared with, or prepare its text again."
        )
    return prefix, inspect(prefix).tokens


def cached_prefix(cache_dir: Path, text: str, text_key: str, tokenizer: Tokenizer) -> Path:
    """Prefix of the prepared dataset of an entry, unique for each text, text key and tokenizer."""
    path = user_path(text)
    identity = str(path.resolve()) if path.exists() else text
    digest = hashlib.sha256("\0".join((identity, text_key, tokenizer.fingerprint)).encode())
    return cache_dir / "datasets" / f"{readable_name(text)}-{digest.hexdigest()[:12]}"


def _blend(
    entries: Sequence[BlendEntry], parts: Sequence[Sequence[Part]], tokenizer_dir: Path
) -> ResolvedBlend:
    """weight(part) = weight(entry) * tokens(part) / tokens(entry)."""
    all_tokens = sum(tokens for of_entry in parts for _, tokens in of_entry)
    weights = []
    for entry, of_entry in zip(entries, parts, strict=True):
        entry_tokens = sum(tokens for _, tokens in of_entry)
        share = entry_tokens / all_tokens if entry.weight is None else entry.weight
        weights += [share * tokens / entry_tokens for _, tokens in of_entry]
    flat = [part for of_entry in parts for part in of_entry]
    return ResolvedBlend(
        prefixes=tuple(prefix for prefix, _ in flat),
        weights=tuple(weights),
        tokens=tuple(tokens for _, tokens in flat),
        entries=tuple(place for place, of_entry in enumerate(parts) for _ in of_entry),
        tokenizer_dir=tokenizer_dir,
    )

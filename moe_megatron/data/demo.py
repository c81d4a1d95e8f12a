"""The demo data, ready to train on: corpus and two indexed datasets, built once.

With `ensure_demo` a first run needs no download. Everything is in one directory of the cache, whose
name contains all that the data depends on. `demo.json` is written last and lists the digests of all
files, so that damage is found by later calls. The corpus is described in `demo_corpus`, the
tokenizer comes with the package.
"""

import json
import logging
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.cached import sampled_digest
from moe_megatron.data.demo_corpus import DOMAINS, write_demo_corpus
from moe_megatron.data.index import bin_path, idx_path
from moe_megatron.data.prepare import CacheEntry, prepare_dataset
from moe_megatron.data.writer import OpenWriter
from moe_megatron.files import exclusive_lock, explained_writes, publishing, user_path
from moe_megatron.reading import read_json
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.tokenizer import Tokenizer
from moe_megatron.text.training import DEFAULT_VOCAB_SIZE

_log = logging.getLogger(__name__)

# Increase it when the corpus or the layout of the directory changes.
_FORMAT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoData:
    """Paths and sizes of the demo data; the keys are the domains "code" and "prose"."""

    tokenizer_dir: Path
    prefixes: dict[str, Path]
    """Indexed dataset of each domain."""
    corpus: dict[str, Path]
    """The .jsonl file from which each was made."""
    tokens: dict[str, int]


def demo_directory(cache_dir: Path, tokenizer: Tokenizer) -> Path:
    """The directory of the demo data for this interpreter and a tokenizer."""
    python = f"{sys.implementation.name}-{platform.python_version()}"
    return cache_dir / f"demo-{python}-{tokenizer.fingerprint[:12]}-v{_FORMAT}"


def ensure_demo(
    cache_dir: Path,
    open_writer: OpenWriter,
    *,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    progress: bool = True,
) -> DemoData:
    """Build the demo data unless it exists.

    Any number of processes may call this at once: one builds, the others wait for it.

    Args:
        cache_dir: Cache root, see `files.default_cache_dir`.
        open_writer: Opens the indexed datasets; called only if they must be built.
        vocab_size: Size of the demo tokenizer.
        progress: Show progress on stderr while building.

    Raises:
        DataError: If `vocab_size` is too small, the cache cannot be written or Python's standard
            library has no source.
    """
    root = user_path(cache_dir).absolute()
    tokenizer = demo_tokenizer(root, vocab_size=vocab_size)
    directory = demo_directory(root, tokenizer)
    if found := _find(directory, tokenizer):
        return found
    with explained_writes(directory), exclusive_lock(directory):
        if found := _find(directory, tokenizer):
            return found
        _log.info("building the demo corpus and its datasets in %s (once)", directory)
        directory.mkdir(exist_ok=True)
        corpus = write_demo_corpus(directory)
        tokens = {
            domain: prepare_dataset(
                [corpus[domain]],
                tokenizer,
                CacheEntry(directory / domain),
                open_writer,
                max_bad_line_ratio=0,
                progress=progress,
            ).tokens
            for domain in DOMAINS
        }
        listing = {"tokens": tokens, "digests": _digests(directory)}
        with publishing(directory / "demo.json") as partial:
            partial.write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return _describe(directory, tokenizer, tokens)


def _find(directory: Path, tokenizer: Tokenizer) -> DemoData | None:
    try:
        listing = read_json(directory / "demo.json")
        whole = _digests(directory) == listing["digests"]
        tokens = {domain: int(listing["tokens"][domain]) for domain in DOMAINS}
    except (KeyError, OSError, TypeError, ValueError):
        # Missing or unreadable: build it again, which reports a real problem better.
        return None
    return _describe(directory, tokenizer, tokens) if whole else None


def _digests(directory: Path) -> dict[str, str]:
    names = [f"{domain}.jsonl" for domain in DOMAINS]
    for domain in DOMAINS:
        names += [path_of(directory / domain).name for path_of in (bin_path, idx_path)]
    return {name: sampled_digest(directory / name) for name in names}


def _describe(directory: Path, tokenizer: Tokenizer, tokens: dict[str, int]) -> DemoData:
    return DemoData(
        tokenizer_dir=tokenizer.directory,
        prefixes={domain: directory / domain for domain in DOMAINS},
        corpus={domain: directory / f"{domain}.jsonl" for domain in DOMAINS},
        tokens=tokens,
    )

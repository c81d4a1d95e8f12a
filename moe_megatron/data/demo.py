"""The demo data, ready to train on: corpus, tokenizer and two indexed datasets, built once.

With `ensure_demo` a first run needs no download. Everything is in one directory of the cache, whose
name contains all that the data depends on. `demo.json` is written last and lists the sizes of all
files, so that later calls only have to compare sizes. The corpus is described in `demo_corpus`.
"""

import json
import logging
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.data.demo_corpus import DOMAINS, write_demo_corpus
from moe_megatron.data.index import bin_path, idx_path
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.readers import read_texts
from moe_megatron.data.writer import OpenWriter
from moe_megatron.files import exclusive_lock, explained_writes, publishing
from moe_megatron.reading import read_json
from moe_megatron.text.training import DEFAULT_VOCAB_SIZE, train_tokenizer

_log = logging.getLogger(__name__)

# Increase it when the corpus, the tokenizer or the layout of the directory changes.
_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoData:
    """Paths and sizes of the demo data; the keys are the domains "code" and "prose"."""

    tokenizer_dir: Path
    prefixes: dict[str, Path]
    """Indexed dataset of each domain."""
    corpus: dict[str, Path]
    """The .jsonl file from which each was made."""
    tokens: dict[str, int]


def demo_directory(cache_dir: Path, vocab_size: int = DEFAULT_VOCAB_SIZE) -> Path:
    """The directory of the demo data for this interpreter."""
    python = f"{sys.implementation.name}-{platform.python_version()}"
    return cache_dir / f"demo-{python}-vocab{vocab_size}-v{_FORMAT}"


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
        vocab_size: Size of the tokenizer trained on both domains.
        progress: Show progress on stderr while building.

    Raises:
        DataError: If the cache cannot be written or Python's standard library has no source.
    """
    directory = demo_directory(Path(cache_dir).expanduser().absolute(), vocab_size)
    if found := _find(directory):
        return found
    with explained_writes(directory), exclusive_lock(directory):
        if found := _find(directory):
            return found
        _log.info("building the demo corpus, tokenizer and datasets in %s (once)", directory)
        directory.mkdir(exist_ok=True)
        corpus = write_demo_corpus(directory)
        texts = read_texts([corpus[domain] for domain in DOMAINS])
        tokenizer = train_tokenizer(texts, directory / "tokenizer", vocab_size=vocab_size)
        tokens = {
            domain: prepare_dataset(
                [corpus[domain]],
                tokenizer,
                directory / domain,
                open_writer,
                max_bad_line_ratio=0,
                progress=progress,
            ).tokens
            for domain in DOMAINS
        }
        listing = {"tokens": tokens, "sizes": _sizes(directory)}
        with publishing(directory / "demo.json") as partial:
            partial.write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return _describe(directory, tokens)


def _find(directory: Path) -> DemoData | None:
    try:
        listing = read_json(directory / "demo.json")
        whole = _sizes(directory) == listing["sizes"]
    except (KeyError, OSError, TypeError, ValueError):
        # Missing or unreadable: build it again, which reports a real problem better.
        return None
    return _describe(directory, listing["tokens"]) if whole else None


def _sizes(directory: Path) -> dict[str, int]:
    data = _describe(directory, {})
    files = [data.tokenizer_dir / "tokenizer.json", data.tokenizer_dir / "tokenizer_config.json"]
    for domain in DOMAINS:
        prefix = data.prefixes[domain]
        files += [data.corpus[domain], bin_path(prefix), idx_path(prefix)]
    return {str(file.relative_to(directory)): file.stat().st_size for file in files}


def _describe(directory: Path, tokens: dict[str, int]) -> DemoData:
    return DemoData(
        tokenizer_dir=directory / "tokenizer",
        prefixes={domain: directory / domain for domain in DOMAINS},
        corpus={domain: directory / f"{domain}.jsonl" for domain in DOMAINS},
        tokens=tokens,
    )

"""Finds and reads tokenizers: in a folder, in the cache, or on the hub.

A folder with a tokenizer.json needs no library but `tokenizers`; `transformers` is imported only to
download or convert one without. A tokenizer directory is an ordinary Hugging Face one, which
`transformers.AutoTokenizer` and Megatron's "huggingface" library can read too. No code of others
is run.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from moe_megatron.cached import cached_folder
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir
from moe_megatron.reading import parse_json
from moe_megatron.text.folder import (
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
    has_tokenizer,
    read_files,
)
from moe_megatron.text.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
_MOST_TOKENS = 2**24  # 60 times the largest vocabulary that was published
_EOD_CANDIDATES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")


def load_tokenizer(name: str | Path, *, cache_dir: Path | None = None) -> Tokenizer:
    """Load a tokenizer from a local directory or by hub id. Never runs remote code.

    Args:
        name: Directory with a tokenizer.json (fast, needs no other library), another Hugging
            Face tokenizer directory, or a hub id.
        cache_dir: Cache for a converted or downloaded tokenizer; `default_cache_dir()` by default.

    Raises:
        DataError: If there is no tokenizer, it cannot be read, or it has no end-of-document token.
    """
    directory = Path(name).expanduser()
    if not (directory / TOKENIZER_FILE).is_file():
        directory = _fetched(str(name), cache_dir or default_cache_dir())
    files = read_files(directory)
    backend = _read(directory / TOKENIZER_FILE, files[TOKENIZER_FILE])
    # Some published tokenizers truncate or pad every text; training data must stay complete.
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(
        directory=directory,
        # Not the number of entries: ids may have gaps.
        vocab_size=_vocab_size(backend, directory),
        eod_id=_eod_id(backend, directory, files),
        fingerprint=hashlib.sha256(files[TOKENIZER_FILE]).hexdigest(),
        backend=backend,
        files=files,
    )


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in the folder of a model; None if the folder holds none.

    Raises:
        DataError: It holds one that cannot be used.
    """
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def as_tokenizer(given: Any) -> Tokenizer:
    """What a person may mean by a tokenizer.

    Args:
        given: A `Tokenizer`, a folder, a hub id, or a fast tokenizer of transformers.

    Raises:
        DataError: It is something else, or cannot be read.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | Path):
        return load_tokenizer(given)
    if hasattr(given, "backend_tokenizer") and hasattr(given, "save_pretrained"):
        return load_tokenizer(_kept(given))
    raise DataError(
        f"a tokenizer cannot be a {type(given).__name__}; give a tokenizer folder, a hub id, or a "
        "fast tokenizer of transformers."
    )


def _kept(tokenizer: Any) -> Path:
    """The directory in the cache of a tokenizer of transformers that is in memory."""
    content = tokenizer.backend_tokenizer.to_str() + str(tokenizer.special_tokens_map)
    target = _entry(default_cache_dir(), "transformers", content.encode())
    return cached_folder(target, lambda folder: tokenizer.save_pretrained(str(folder)))


def _entry(cache_dir: Path, name: str, content: bytes) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:]
    return cache_dir / "tokenizers" / f"{slug}-{hashlib.sha256(content).hexdigest()[:16]}"


def _read(path: Path, content: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise DataError(f"{path} is not a tokenizer ({error}); copy or save it again.") from error


def _vocab_size(backend: tokenizers.Tokenizer, directory: Path) -> int:
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 0 < size <= _MOST_TOKENS:
        raise DataError(
            f"{directory / TOKENIZER_FILE} needs an embedding of {size:,} rows, and 1 to "
            f"{_MOST_TOKENS:,} are possible; copy or save the tokenizer again."
        )
    return size


def _fetched(name: str, cache_dir: Path) -> Path:
    """Let transformers download or convert `name`; returns its directory in the cache."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return cached_folder(
            _entry(cache_dir, name, name.encode()), lambda new: _convert(name, name, new)
        )
    files = read_files(folder)
    if not files:
        raise DataError(
            f"folder {folder} holds no tokenizer (no {TOKENIZER_FILE}, tokenizer.model or "
            'vocab.json); copy the files of the tokenizer there, or give another folder, or "demo".'
        )
    digests = [f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files)]
    target = _entry(cache_dir, folder.name, "\n".join(digests).encode())
    return cached_folder(target, lambda new: _convert(name, str(folder.resolve()), new))


def _convert(name: str, source: str, folder: Path) -> None:
    """Write the tokenizer that transformers finds in a folder or on the hub into a new folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # it takes files as they are: any key may be missing or odd
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"no tokenizer at {name!r}: it is not a directory with a {TOKENIZER_FILE}, and "
            f"transformers could not load it ({reason}). Give such a directory; or, on a machine "
            f"with a network, run AutoTokenizer.from_pretrained({name!r}).save_pretrained(DIR) and "
            'give DIR; or use "demo".'
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {name!r} has no fast version ({TOKENIZER_FILE}), which tokenising needs; "
            "choose a model that publishes one."
        )
    tokenizer.save_pretrained(str(folder))


def _eod_id(backend: tokenizers.Tokenizer, directory: Path, files: Mapping[str, bytes]) -> int:
    for token in [*_declared_eos(directory, files), *_EOD_CANDIDATES]:
        token_id = backend.token_to_id(token)
        if token_id is not None:
            return token_id
    raise DataError(
        f"tokenizer {directory} names no end-of-document token; add an existing one as "
        f'"eos_token" to {directory / CONFIG_FILE}.'
    )


def _declared_eos(directory: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """The eos token of the tokenizer's own configuration, plain or as {"content": ...}."""
    for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE):
        if name not in files:
            continue
        try:
            token = parse_json(files[name], large_numbers=True).get("eos_token")
        except (ValueError, AttributeError) as error:
            path = directory / name
            raise DataError(f"{path} is not a JSON object ({error}); save it again.") from error
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            yield token

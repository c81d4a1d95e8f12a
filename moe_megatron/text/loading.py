"""Finds and reads tokenizers: in a folder, in the cache, or on the hub.

A folder with a tokenizer.json needs no library but `tokenizers`; one without goes through
`fetching`. A tokenizer directory is an ordinary Hugging Face one, which
`transformers.AutoTokenizer` and Megatron's "huggingface" library can read too. No code of others
is run.
"""

import hashlib
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from moe_megatron.cached import cached_folder
from moe_megatron.contents import REMEDIES, content_of
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, user_path
from moe_megatron.reading import parse_json
from moe_megatron.text.fetching import cache_entry, fetched
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
_UNKNOWN = "\u2603\U0001f9ff"
"""A word that no vocabulary of words holds."""
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
    directory = user_path(name)
    if directory.name == TOKENIZER_FILE:
        directory = directory.parent
    if not os.path.isfile(directory / TOKENIZER_FILE):  # also of a name that no file can have
        directory = fetched(str(name), cache_dir or default_cache_dir())
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
    target = cache_entry(default_cache_dir(), "transformers", content.encode())
    return cached_folder(target, lambda folder: tokenizer.save_pretrained(str(folder)))


def _read(path: Path, content: bytes) -> tokenizers.Tokenizer:
    what = "text with a byte order mark" if content.startswith(BOM_UTF8) else content_of(content)
    if what is not None:
        remedy = REMEDIES.get(what, "save it as UTF-8 without one")
        raise DataError(f"{path} is {what}, not the JSON of a tokenizer; {remedy}.")
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise DataError(f"{path} is not a tokenizer ({error}); copy or save it again.") from error
    try:
        backend.encode(_UNKNOWN, add_special_tokens=False)
    except Exception as error:  # what the library raises
        raise DataError(
            f"{path} has no token for unknown words ({error}), so most texts could not be read; "
            "add its unk_token to the vocabulary, or use a tokenizer of another model."
        ) from error
    return backend


def _vocab_size(backend: tokenizers.Tokenizer, directory: Path) -> int:
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 0 < size <= _MOST_TOKENS:
        raise DataError(
            f"{directory / TOKENIZER_FILE} needs an embedding of {size:,} rows, and 1 to "
            f"{_MOST_TOKENS:,} are possible; copy or save the tokenizer again."
        )
    return size


def _eod_id(backend: tokenizers.Tokenizer, directory: Path, files: Mapping[str, bytes]) -> int:
    declared = list(_declared_eos(directory, files))
    for token in declared or _EOD_CANDIDATES:
        token_id = backend.token_to_id(token)
        if token_id is not None:
            return token_id
    if declared:
        raise DataError(
            f"tokenizer {directory} declares the end-of-document token {declared[0]!r}, which its "
            f"vocabulary lacks; copy {TOKENIZER_FILE} and {CONFIG_FILE} from one model, or name an "
            f'existing token as "eos_token" in {directory / CONFIG_FILE}.'
        )
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

"""Tokenizers without a tokenizer.json: fetched from the hub or converted by transformers, once.

They are kept in the cache under a hash of what they were made from, and no code of theirs is run.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_megatron.cached import cached_folder
from moe_megatron.errors import DataError
from moe_megatron.files import readable_name, user_path
from moe_megatron.network import hub_is_reachable
from moe_megatron.reading import read_bytes
from moe_megatron.text.folder import TOKENIZER_FILE, read_files

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def fetched(name: str, cache_dir: Path) -> Path:
    """Let transformers download or convert `name`; returns its directory in the cache."""
    folder = user_path(name)
    if not os.path.isdir(folder):  # also of a name that no folder can have
        if not _HUB_ID.fullmatch(name):
            raise DataError(
                f"there is no tokenizer folder {name[:200]!r}, and a hub id looks like owner/name; "
                'check the path, or use "demo".'
            )
        return cached_folder(
            cache_entry(cache_dir, name, name.encode()), lambda new: _convert(name, name, new)
        )
    files = read_files(folder)
    if not files:
        raise DataError(
            f"folder {folder} holds no tokenizer (no {TOKENIZER_FILE}, tokenizer.model or "
            'vocab.json); copy the files of the tokenizer there, or give another folder, or "demo".'
        )
    config = folder / "config.json"  # which may name the class of the tokenizer
    made_of = {**files, config.name: read_bytes(config) if config.is_file() else b""}
    digests = [f"{key} {hashlib.sha256(made_of[key]).hexdigest()}" for key in sorted(made_of)]
    target = cache_entry(cache_dir, folder.name, "\n".join(digests).encode())
    return cached_folder(target, lambda new: _convert(name, str(folder.resolve()), new))


def cache_entry(cache_dir: Path, name: str, content: bytes) -> Path:
    """Where the tokenizer that is made from `content` lies in a cache."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    return cache_dir / "tokenizers" / f"{readable_name(name)}-{digest}"


def _convert(name: str, source: str, folder: Path) -> None:
    """Write the tokenizer that transformers finds in a folder or on the hub into a new folder."""
    from transformers import AutoTokenizer

    local = os.path.isdir(source) or not hub_is_reachable()
    try:
        with _in_silence():
            tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, local_files_only=local
            )
    except Exception as error:  # it takes files as they are: any key may be missing or odd
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(_explained(name, Path(source), reason, local)) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {name!r} has no fast version ({TOKENIZER_FILE}), which tokenising needs; "
            "choose a model that publishes one."
        )
    tokenizer.save_pretrained(str(folder))


def _explained(name: str, folder: Path, reason: str, local: bool) -> str:
    pieces = [file.name for file in folder.glob("*.model")] if os.path.isdir(folder) else []
    if pieces:
        return (
            f"folder {folder} holds a SentencePiece model ({pieces[0]}) and no {TOKENIZER_FILE}, "
            f"and transformers could not convert it ({reason}); take {TOKENIZER_FILE} from a newer "
            "copy of the model, or install sentencepiece and protobuf."
        )
    away = local and not os.path.isdir(folder)
    where = "the hub cannot be reached, and the cache does not hold it: " if away else ""
    return (
        f"no tokenizer at {name[:200]!r}: it is not a directory with a {TOKENIZER_FILE}, and "
        f"transformers could not load it ({where}{reason}). Give such a directory; or, on a "
        f"machine with a network, run AutoTokenizer.from_pretrained({name[:200]!r})"
        '.save_pretrained(DIR) and give DIR; or use "demo".'
    )


@contextmanager
def _in_silence() -> Iterator[None]:
    """Without the warnings of transformers, whose errors say the same."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)

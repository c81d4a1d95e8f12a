"""Tokenizers: trained here, or loaded from a directory or the hub.

They use the Rust library `tokenizers`, which imports in milliseconds; `transformers` is imported
only to download or convert a tokenizer without a local tokenizer.json. A tokenizer directory is an
ordinary Hugging Face one: `transformers.AutoTokenizer` and Megatron's "huggingface" library can
read it too.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, publishing
from moe_megatron.reading import read_bytes, read_json

END_OF_TEXT = "<|endoftext|>"
DEFAULT_VOCAB_SIZE = 8192
# 256 bytes and the end-of-text token: with fewer, some text could not be encoded.
MIN_VOCAB_SIZE = 257
_MOST_TOKENS = 2**24  # 60 times the largest vocabulary that was published
_EOD_CANDIDATES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")
_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    *(_TOKENIZER_FILE, _CONFIG_FILE, "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
"""The files of a model folder that make up its tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """A loaded tokenizer; it can be pickled and sent to workers."""

    directory: Path
    """Local Hugging Face tokenizer directory."""
    vocab_size: int
    """One more than the largest token id."""
    eod_id: int
    """Id of the token that ends each document."""
    fingerprint: str
    """sha256 of tokenizer.json."""
    backend: Tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts without adding special tokens.

        A special token that is spelled out in a text becomes that token, as in Megatron; some files
        separate documents that way.
        """
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, including special tokens."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=False))


def train_tokenizer(
    texts: Iterable[str], directory: Path, *, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> TokenizerInfo:
    """Train a byte-level BPE tokenizer and save it. Equal texts give equal tokenizers.

    Args:
        texts: Training texts; consumed once.
        directory: Tokenizer directory to create; it appears whole or not at all.
        vocab_size: Wanted number of entries, including the 256 bytes and the end-of-text token.
            With little text there may be fewer.

    Raises:
        DataError: If `vocab_size` is below 257, or the directory cannot be written.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size ({vocab_size}) must be at least {MIN_VOCAB_SIZE}, for 256 bytes and "
            f"{END_OF_TEXT}; try 8192 for a small corpus."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    directory = Path(directory)
    with publishing(directory) as partial:
        partial.mkdir()
        # Not `backend.save`, whose errors are not OSError.
        (partial / _TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8")
        (partial / _CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return load_tokenizer(directory)


def load_tokenizer(name: str | Path, *, cache_dir: Path | None = None) -> TokenizerInfo:
    """Load a tokenizer from a local directory or by hub id. Never runs remote code.

    Args:
        name: Directory with a tokenizer.json (fast, needs no other library), another Hugging
            Face tokenizer directory, or a hub id.
        cache_dir: Cache for a converted or downloaded tokenizer; `default_cache_dir()` by default.

    Raises:
        DataError: If there is no tokenizer, it cannot be read, or it has no end-of-document token.
    """
    directory = Path(name).expanduser()
    if not (directory / _TOKENIZER_FILE).is_file():
        directory = _fetched(str(name), cache_dir or default_cache_dir())
    content, backend = _read(directory / _TOKENIZER_FILE)
    # Some published tokenizers truncate or pad every text; training data must stay complete.
    backend.no_truncation()
    backend.no_padding()
    return TokenizerInfo(
        directory=directory,
        # Not the number of entries: ids may have gaps.
        vocab_size=_vocab_size(backend, directory),
        eod_id=_eod_id(backend, directory),
        fingerprint=hashlib.sha256(content).hexdigest(),
        backend=backend,
    )


def _read(path: Path) -> tuple[bytes, Tokenizer]:
    try:
        content = read_bytes(path)
        return content, Tokenizer.from_buffer(content)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a tokenizer ({error}); copy or save it again.") from error


def _vocab_size(backend: Tokenizer, directory: Path) -> int:
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 0 < size <= _MOST_TOKENS:
        raise DataError(
            f"{directory / _TOKENIZER_FILE} needs an embedding of {size:,} rows, and 1 to "
            f"{_MOST_TOKENS:,} are possible; copy or save the tokenizer again."
        )
    return size


def _fetched(name: str, cache_dir: Path) -> Path:
    """Let transformers download or convert `name`; returns its directory in the cache."""
    is_local = Path(name).expanduser().exists()
    identity = str(Path(name).expanduser().resolve()) if is_local else name
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:]
    target = (
        cache_dir / "tokenizers" / f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    )
    if (target / _TOKENIZER_FILE).is_file():
        return target
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(identity, trust_remote_code=False)
    except Exception as error:  # it takes files as they are: any key may be missing or odd
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"no tokenizer at {name!r}: it is not a directory with a {_TOKENIZER_FILE}, and "
            f"transformers could not load it ({reason}). Give such a directory; or, on a machine "
            f"with a network, run AutoTokenizer.from_pretrained({name!r}).save_pretrained(DIR) and "
            'give DIR; or use "demo".'
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {name!r} has no fast version ({_TOKENIZER_FILE}), which tokenising needs; "
            "choose a model that publishes one."
        )
    with publishing(target) as partial:
        tokenizer.save_pretrained(str(partial))
    return target


def _eod_id(backend: Tokenizer, directory: Path) -> int:
    candidates = [*_declared_eos(directory), *_EOD_CANDIDATES]
    for token in candidates:
        token_id = backend.token_to_id(token)
        if token_id is not None:
            return token_id
    raise DataError(
        f"tokenizer {directory} names no end-of-document token; add an existing one as "
        f'"eos_token" to {directory / _CONFIG_FILE}.'
    )


def _declared_eos(directory: Path) -> list[str]:
    """The eos token of the tokenizer's own configuration, plain or as {"content": ...}."""
    found = []
    for name in (_CONFIG_FILE, "special_tokens_map.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            token = read_json(path).get("eos_token")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is not a JSON object ({error}); save it again.") from error
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found.append(token)
    return found

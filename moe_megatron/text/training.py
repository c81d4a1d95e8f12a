"""Trains a tokenizer on texts: byte-level BPE, which can encode whatever is written."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_megatron.errors import DataError
from moe_megatron.files import publishing
from moe_megatron.text.folder import CONFIG_FILE, TOKENIZER_FILE
from moe_megatron.text.loading import END_OF_TEXT, load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

DEFAULT_VOCAB_SIZE = 8192
# 256 bytes and the end-of-text token: with fewer, some text could not be encoded.
MIN_VOCAB_SIZE = 257


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that does not hold every byte.

    Raises:
        DataError: `vocab_size` is below 257.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size ({vocab_size}) must be at least {MIN_VOCAB_SIZE}, for 256 bytes and "
            f"{END_OF_TEXT}; try 8192 for a small corpus."
        )


def train_tokenizer(
    texts: Iterable[str], directory: Path, *, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> Tokenizer:
    """Train a byte-level BPE tokenizer and save it. Equal texts give equal tokenizers.

    Args:
        texts: Training texts; consumed once.
        directory: Tokenizer directory to create; it appears whole or not at all.
        vocab_size: Wanted number of entries, including the 256 bytes and the end-of-text token.
            With little text there may be fewer.

    Raises:
        DataError: If `vocab_size` is below 257, or the directory cannot be written.
    """
    check_vocab_size(vocab_size)
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    directory = Path(directory)
    with publishing(directory) as partial:
        partial.mkdir()
        write_trained(backend, partial)
    return load_tokenizer(directory)


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """A tokenizer that spells text in bytes before `model` joins them."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def write_trained(backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Write the files of a tokenizer into a folder; transformers and Megatron read them, too."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    # Not `backend.save`, whose errors are not OSError.
    (folder / TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")

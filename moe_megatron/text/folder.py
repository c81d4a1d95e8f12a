"""The files of a model folder that make up its tokenizer: found, read and written.

They are taken as bytes, so that a chat template or a setting that nothing here understands goes
with the model. The module does not know what they mean.
"""

from collections.abc import Mapping
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.files import explained_writes, replace_file
from moe_megatron.reading import leads_out, read_bytes

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
MOST_BYTES = 128 * 2**20
"""Of one file; the largest that was published has 40 million."""

_WORDS = (
    *(TOKENIZER_FILE, "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tekken.json"),
)
"""Each of these holds a vocabulary."""
TOKENIZER_FILES = (
    *(*_WORDS, CONFIG_FILE, SPECIAL_TOKENS_FILE, "added_tokens.json"),
    *("merges.txt", TEMPLATE_FILE),
)
"""The files of a model folder that make up its tokenizer."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in _WORDS)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of a tokenizer's files, by name.

    Raises:
        DataError: One cannot be read, is larger than any tokenizer, or is a link to some other
            file elsewhere, which saving the tokenizer would copy.
    """
    found = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if not path.exists():
            continue
        if real := leads_out(path, folder):
            raise DataError(
                f"{path} is a link to {real}, which is not in the tokenizer's folder, and would be "
                "copied with it; replace the link by the file if it belongs there, or remove it."
            )
        try:
            found[name] = read_bytes(path, MOST_BYTES)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read as a file of a tokenizer: {error.strerror}; copy or save "
                "the tokenizer again, or remove the file."
            ) from error
    return found


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a tokenizer's files beside what a folder holds, in place of another tokenizer's.

    Raises:
        DataError: The folder cannot be written.
    """
    with explained_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(folder / name, [content])
        for name in TOKENIZER_FILES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)

"""A tokenizer: text to token ids and back.

It wraps one of the Rust library `tokenizers`, which imports in milliseconds, with what training
and generation ask beyond it. Where it came from is told by `loading` and `training`. It knows no
model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

from moe_megatron.errors import DataError
from moe_megatron.text.folder import write_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """A loaded tokenizer; it can be pickled and sent to workers.

    Two are equal if they give equal tokens and end documents alike.
    """

    directory: Path = field(compare=False)
    """The Hugging Face tokenizer directory that it was read from."""
    vocab_size: int
    """One more than the largest token id."""
    eod_id: int
    """Id of the token that ends each document."""
    fingerprint: str = field(repr=False)
    """sha256 of tokenizer.json."""
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)
    files: Mapping[str, bytes] = field(repr=False, compare=False)
    """The files of its directory, by name."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text to be continued.

        Such as a published tokenizer puts in front of a text come first. What it puts after one
        is left out.

        Raises:
            DataError: The tokenizer has no token for a part of the text.
        """
        try:
            encoding = self.backend.encode(text)
        except Exception as error:  # what the library raises
            raise self._unknown(error) from error
        ids, added = encoding.ids, encoding.special_tokens_mask
        while ids and added[len(ids) - 1]:
            del ids[-1]
        return list(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts without adding special tokens.

        A special token that is spelled out in a text becomes that token, as in Megatron; some files
        separate documents that way.

        Raises:
            DataError: The tokenizer has no token for a part of a text.
        """
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # what the library raises
            raise self._unknown(error) from error
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text without adding special tokens.

        Returns:
            The ids, and from which character of the text to which each of them goes.

        Raises:
            DataError: The tokenizer has no token for a part of the text.
        """
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except Exception as error:  # what the library raises
            raise self._unknown(error) from error
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `tokens`.

        Args:
            tokens: Token ids; those that the vocabulary lacks have no text.
            skip_special_tokens: Leave out tokens such as the end of a document.
        """
        return str(self.backend.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def save(self, folder: Path) -> None:
        """Write its files into a folder, such as that of a model.

        Raises:
            DataError: The folder cannot be written.
        """
        write_files(folder, self.files)

    def _unknown(self, error: Exception) -> DataError:
        return DataError(
            f"the tokenizer in {self.directory} has no token for a part of the text ({error}): its "
            "vocabulary lacks the token for unknown words; use a tokenizer of another model, or "
            "one that was saved with all its special tokens."
        )

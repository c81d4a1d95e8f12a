"""The interface through which tokenised documents are written.

The on-disk format is Megatron's, which only `moe_megatron.mcore` may import. This package therefore
asks its caller for a factory, and knows only the two protocols below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class DocumentWriter(Protocol):
    """Appends documents to `<prefix>.bin`; `finalize` adds `<prefix>.idx`."""

    @property
    def dtype(self) -> str:
        """Name of the integer type on disk, such as "uint16"."""
        ...

    def add_document(self, tokens: Sequence[int]) -> None:
        """Append one document.

        Args:
            tokens: Token ids, including the end-of-document id.
        """
        ...

    def add_pieces(
        self, tokens: Sequence[int], lengths: Sequence[int], modes: Sequence[int]
    ) -> None:
        """Append one sample of instruction data, to a writer that was opened for such.

        Args:
            tokens: Token ids of all its pieces, one after another.
            lengths: Number of tokens of each piece.
            modes: What each piece is, as `data/instructions/stored.py` reads it.
        """
        ...

    def add_index(self, prefix: Path) -> None:
        """Append every document of a finished dataset.

        Args:
            prefix: Path of that dataset without `.bin` and `.idx`.
        """
        ...

    def finalize(self) -> None:
        """Close the data file and write the index; the dataset is complete afterwards."""
        ...

    def close(self) -> None:
        """Release the files of an abandoned writer; harmless after `finalize`."""
        ...


class OpenWriter(Protocol):
    """Factory of writers. Workers receive it by pickle: use a module-level function or class."""

    def __call__(self, prefix: Path, vocab_size: int) -> DocumentWriter:
        """Start a dataset.

        Args:
            prefix: Output path without `.bin` and `.idx`; the directory exists.
            vocab_size: One more than the largest token id; it determines the integer type.
        """
        ...

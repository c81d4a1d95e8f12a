"""What tokenised documents are written through.

The on-disk format belongs to Megatron, which only `moe_megatron.mcore` may import. This package
therefore asks its caller for a factory, and knows of the writer no more than the two protocols
below.
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
            tokens: Token ids, the end-of-document id included.
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
        """Release the files of a writer that is given up; harmless after `finalize`."""
        ...


class OpenWriter(Protocol):
    """Factory of writers. Workers receive it by pickle: use a module-level function or class."""

    def __call__(self, prefix: Path, vocab_size: int) -> DocumentWriter:
        """Start a dataset.

        Args:
            prefix: Output path without `.bin` and `.idx`; the directory exists.
            vocab_size: One more than the largest token id; decides the integer type.
        """
        ...

"""Writes tokenised documents in Megatron's indexed dataset format.

The adapter between `moe_megatron.data`, which knows text but not Megatron, and
`IndexedDatasetBuilder`, which knows the format but not text. It knows nothing about tokenizers,
shards or atomic renames.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


class IndexedDatasetWriter:
    """A `moe_megatron.data.writer.DocumentWriter` that uses Megatron's builder."""

    def __init__(self, prefix: Path, builder: "IndexedDatasetBuilder") -> None:
        self._prefix = prefix
        self._builder = builder

    @property
    def dtype(self) -> str:
        """Name of the integer type on disk: "uint16" or "int32"."""
        return str(self._builder.dtype.__name__)

    def add_document(self, tokens: Sequence[int]) -> None:
        """Append one document of `len(tokens)` ids as a single sequence."""
        self._builder.add_document(tokens, [len(tokens)])

    def add_pieces(
        self, tokens: Sequence[int], lengths: Sequence[int], modes: Sequence[int]
    ) -> None:
        """Append one sample, and what each of its pieces is."""
        self._builder.add_document(tokens, list(lengths), [int(it) for it in modes])

    def add_index(self, prefix: Path) -> None:
        """Append the finished dataset `<prefix>.bin` / `<prefix>.idx`."""
        self._builder.add_index(str(prefix))

    def finalize(self) -> None:
        """Close `.bin` and write `.idx`."""
        self._builder.finalize(f"{self._prefix}.idx")

    def close(self) -> None:
        """Close the `.bin` of a dataset that will not be finished."""
        # On a full disk, closing flushes and fails again; the first error is the one to report.
        with suppress(OSError):
            self._builder.data_file.close()


def open_indexed_dataset(
    prefix: Path, vocab_size: int, *, pieces: bool = False
) -> IndexedDatasetWriter:
    """Start a dataset; `moe_megatron.data` passes this factory to its workers.

    Args:
        prefix: Output path without `.bin` and `.idx`.
        vocab_size: One more than the largest token id. Below 65,500 ids take 2 bytes, else 4.
        pieces: Whether documents come in pieces, some of which are learned.

    Returns:
        An open writer.

    Raises:
        OSError: If `<prefix>.bin` cannot be created.
    """
    # Imported here because importing megatron.core takes seconds, and a run whose data is already
    # prepared passes this factory around without ever calling it.
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    dtype = DType.optimal_dtype(vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=pieces)
    return IndexedDatasetWriter(prefix, builder)

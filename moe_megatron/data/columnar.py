"""Opens files that have columns: Parquet, and datasets saved by `datasets`.

Their libraries are imported only when such a file is opened. It does not know which column is
needed.
"""

from typing import TYPE_CHECKING

from moe_megatron.errors import DataError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped,unused-ignore]


def open_parquet(path: str) -> "parquet.ParquetFile":
    """Open a parquet file and read its footer.

    Raises:
        DataError: If it is not a parquet file.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(
            f"{path} is not a complete parquet file ({error}); copy or write it again."
        ) from error


def open_saved_dataset(path: str) -> "datasets.Dataset":
    """Memory-map one split that `Dataset.save_to_disk` wrote."""
    import datasets

    return datasets.load_from_disk(path)

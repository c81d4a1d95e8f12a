"""Opens files that have columns: Parquet, and datasets saved by `datasets`.

Their libraries are imported only when such a file is opened. It does not know which column is
needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
    import pyarrow.parquet as parquet

    with whole_columns(path):
        return parquet.ParquetFile(path)


@contextmanager
def whole_columns(path: str) -> Iterator[None]:
    """Say which file it is where Arrow finds one damaged.

    Raises:
        DataError: In place of an error of Arrow.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a complete parquet file ({error}); copy or write it again."
        ) from error


def open_saved_dataset(path: str) -> "datasets.Dataset":
    """Memory-map one split that `Dataset.save_to_disk` wrote.

    Raises:
        DataError: It is damaged.
    """
    import datasets

    try:
        return datasets.load_from_disk(path)
    except Exception as error:  # its files are taken as they are: anything may be missing or odd
        raise DataError(
            f"{path} is not a dataset that save_to_disk wrote ({type(error).__name__}: "
            f"{str(error)[:200]}); save it again."
        ) from error

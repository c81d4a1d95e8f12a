"""Datasets of Hugging Face: in Arrow files, streamed, or a dictionary of splits."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.cached import cached_folder
from moe_megatron.data.objects.documents import documents
from moe_megatron.data.objects.kinds import Ask, reads, source_of, wanted_column
from moe_megatron.data.shards import Source
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir


def is_dataset(given: Any) -> bool:
    """Whether it is one, in memory, in files or streamed."""
    return hasattr(given, "column_names") and hasattr(given, "features")


def is_dictionary(given: Any) -> bool:
    """Whether it is a dictionary of splits."""
    return isinstance(given, Mapping) and bool(given) and all(map(is_dataset, given.values()))


@reads(lambda given: is_dataset(given) and not hasattr(given, "save_to_disk"))
def read_stream(given: Any, ask: Ask) -> tuple[Source, ...]:
    """An `IterableDataset`, read to its end."""
    return documents(_texts(given, ask), ask, lambda row: f"row {row} of {ask.name}")


@reads(lambda given: is_dataset(given) and hasattr(given, "save_to_disk"))
def read_dataset(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A `Dataset`; its text is copied into the cache once, as workers read files.

    Raises:
        DataError: It lacks the column, or has no rows.
    """
    column = wanted_column(given.column_names, ask)
    if not len(given):
        raise DataError(f"{ask.name} has no rows; give at least one text.")
    return (saved_copy(given.select_columns([column]), ask.text_key, of=given),)


def saved_copy(dataset: Any, name: str, *, of: Any = None) -> Path:
    """The folder in the cache of a dataset, which is written there once.

    Args:
        dataset: The dataset.
        name: Tells copies of one dataset apart.
        of: What it is made of, whose fingerprint names it; None: itself.
    """
    made_of = dataset if of is None else of
    target = default_cache_dir() / "python" / f"hf-{made_of._fingerprint}-{name}"
    return cached_folder(target, lambda folder: dataset.save_to_disk(str(folder)))


@reads(is_dictionary)
def read_splits(given: Mapping[str, Any], ask: Ask) -> tuple[Source, ...]:
    """A `DatasetDict` with one split; of several, the caller must name one.

    Raises:
        DataError: It has several splits.
    """
    return source_of(only_split(given, ask), ask)


def only_split(given: Mapping[str, Any], ask: Ask) -> Any:
    """The split of a dictionary that has but one.

    Raises:
        DataError: It has several.
    """
    if len(given) == 1:
        return next(iter(given.values()))
    wanted = "train" if ask.name.startswith("train") else "validation"
    example = wanted if wanted in given else next(iter(given))
    raise DataError(
        f"{ask.name} is a {type(given).__name__} of {', '.join(map(repr, given))}; give one of "
        f"them, such as {ask.name}[{example!r}]."
    )


def _texts(rows: Any, ask: Ask) -> Iterator[Any]:
    for row in rows:
        yield row[wanted_column(list(row), ask)]

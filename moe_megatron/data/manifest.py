"""What a prepared dataset was made from, kept as `<prefix>.json` beside it.

With it a later start finds in milliseconds that nothing has changed; a changed file, key or
tokenizer, or damage to the dataset, leads to a new preparation. Sources are compared by path, size
and modification time, a hub dataset only by name (its content is not checked); the dataset by
digests. It knows nothing about how data is made.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.cached import sampled_digest
from moe_megatron.data.index import bin_path, idx_path
from moe_megatron.data.shards import SourceFile
from moe_megatron.errors import DataError
from moe_megatron.reading import read_json

FORMAT = "moe_megatron prepared dataset 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedDataset:
    """A finished dataset: `<prefix>.bin`, `<prefix>.idx` and `<prefix>.json`."""

    prefix: Path
    documents: int
    tokens: int
    """Number of tokens, including end-of-document tokens."""
    dtype: str
    """Integer type of a token on disk."""
    lines: int
    """Lines or rows read; lines == documents + bad_lines + empty_documents."""
    bad_lines: int
    empty_documents: int
    learned_tokens: int | None = None
    """Tokens of answers, of instruction data; None: all are learned."""


def manifest_path(prefix: Path) -> Path:
    """The manifest of `prefix`."""
    return prefix.with_name(f"{prefix.name}.json")


def write_manifest(
    target: Path, dataset: PreparedDataset, origin: dict[str, Any], whole: Path
) -> None:
    """Write the manifest of `dataset` to `target`.

    Args:
        target: File to write.
        dataset: The counts; its prefix is not recorded, so a dataset may be moved.
        origin: From `describe_origin`.
        whole: Prefix of the finished .bin and .idx file.
    """
    counts = dataclasses.asdict(dataset)
    del counts["prefix"]
    content = {"format": FORMAT, **origin, "counts": counts, "digests": _digests(whole)}
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def describe_origin(
    files: Sequence[SourceFile],
    fingerprint: str,
    eod_id: int,
    text_key: str,
    instructions: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that determines the content of a dataset, as JSON values.

    Args:
        files: The sources.
        fingerprint: Of the tokenizer.
        eod_id: Of the token that ends each text.
        text_key: Where texts are; not of instruction data.
        instructions: Of instruction data, what it is read with.
    """
    read_with = {"text_key": text_key} if instructions is None else {"instructions": instructions}
    return {
        "sources": [file.identity() for file in files],
        "tokenizer": {"fingerprint": fingerprint, "eod_id": eod_id},
        **read_with,
    }


def read_manifest(prefix: Path) -> dict[str, Any] | None:
    """The manifest of `prefix`; None if there is none that this package wrote."""
    try:
        content = read_json(manifest_path(prefix))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return content if ours else None


def find_prepared(
    prefix: Path, origin: dict[str, Any], max_bad_line_ratio: float
) -> PreparedDataset | None:
    """The dataset at `prefix` if it is complete and was made from `origin`; else None."""
    manifest = read_manifest(prefix)
    if manifest is None or any(manifest.get(key) != value for key, value in origin.items()):
        return None
    try:
        if manifest.get("digests") != _digests(prefix):
            return None
        dataset = PreparedDataset(prefix=prefix, **manifest["counts"])
        most = most_bad_lines(dataset, max_bad_line_ratio)
        acceptable = dataset.bad_lines <= most
    except (KeyError, OSError, TypeError):  # a part of it is gone or damaged
        return None
    return dataset if acceptable else None


def most_bad_lines(dataset: PreparedDataset, max_bad_line_ratio: float) -> float:
    """How many malformed lines are left out without ending the preparation.

    Of conversations one is, however few there are, unless the ratio is 0: a set that was written
    by hand is small.
    """
    most = max_bad_line_ratio * dataset.lines
    conversations = dataset.learned_tokens is not None and dataset.documents > 0
    return max(most, 1.0) if conversations and most else most


def _digests(prefix: Path) -> list[str]:
    return [sampled_digest(bin_path(prefix)), sampled_digest(idx_path(prefix))]


def refuse_foreign_files(prefix: Path) -> None:
    """Refuse to overwrite files that this package did not write.

    Raises:
        DataError: If a file of the dataset exists without a manifest of this package.
    """
    if read_manifest(prefix) is not None:
        return
    for path in (bin_path(prefix), idx_path(prefix), manifest_path(prefix)):
        if path.exists():
            raise DataError(
                f"{path} exists and was not written by this tool; choose another output prefix, "
                "or move the file away."
            )

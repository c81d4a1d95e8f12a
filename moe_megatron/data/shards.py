"""Finds the text, and divides it among workers.

A source (a path, a hub id, strings in memory) expands to files; files split into shards; shards
are grouped into parts of about equal size, one per worker. Shards keep the order of the documents,
so their concatenation is the same text for any number of shards. This module reads only directory
listings and file footers; `readers` reads the text.
"""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_megatron.contents import GZIP, PARQUET, REMEDIES, ZSTD, content_of
from moe_megatron.data.columnar import open_parquet, open_saved_dataset
from moe_megatron.errors import DataError
from moe_megatron.files import user_path
from moe_megatron.reading import open_regular, read_json

_log = logging.getLogger(__name__)

Kind = Literal["txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow", "hub", "memory"]

SUFFIXES: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".parquet": "parquet",
}
# owner/name, then optionally :config and :split; a single word is no id, but a mistake
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+){0,2}")
_PATTERN = re.compile(r"[*?\[]")
_CONTENT: dict[Kind, str] = {"jsonl.gz": GZIP, "jsonl.zst": ZSTD, "parquet": PARQUET}
END = -1
_SUPPORTED = ", ".join(SUFFIXES)


@dataclass(frozen=True, kw_only=True, slots=True)
class InMemory:
    """Documents that the caller already holds as strings."""

    texts: tuple[str, ...]

    def digest(self) -> str:
        """Of all texts and where each of them ends."""
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(encoded) + encoded)
        return digest.hexdigest()


Source = str | Path | InMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file, saved dataset, hub dataset or list of strings."""

    kind: Kind
    path: str
    """Path of the file or directory, hub id, or `memory:<sha256>`."""
    size: int
    """Size in bytes as stored; 0 if unknown."""
    mtime_ns: int = 0
    texts: tuple[str, ...] = ()

    def identity(self) -> dict[str, str | int]:
        """The values that must not change for prepared data to remain valid."""
        return {
            "kind": self.kind,
            "path": self.path,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A contiguous piece of a source file.

    `start` and `stop` count bytes in a .jsonl file, row groups in a .parquet file, rows in a
    saved dataset and strings in memory; all other kinds are read whole.
    """

    kind: Kind
    path: str
    size: int
    start: int = 0
    stop: int = END
    texts: tuple[str, ...] = ()


def expand_sources(sources: Sequence[Source]) -> tuple[SourceFile, ...]:
    """List the files behind `sources`, in a fixed order.

    Args:
        sources: Files, directories (searched recursively, sorted), patterns such as
            `data/*.jsonl`, directories written by `datasets.save_to_disk`, hub ids
            (`owner/name[:config[:split]]`), or `InMemory`. Of several files, empty ones are left
            out and counted in a warning.

    Raises:
        DataError: If there is no source, or one is missing, of an unknown or another type than its
            name says, or if all are empty.
    """
    if not sources:
        raise DataError("no data source was given; name at least one file, directory or hub id.")
    found = [file for source in sources for file in _expand(source)]
    empty = [file for file in found if not file.size and file.kind not in {"hub", "memory"}]
    if len(empty) == len(found):
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        first = sources[0] if len(found) == len(sources) else empty[0].path
        raise DataError(f"data file {first}{more} is empty; write it again, or leave it out.")
    if empty:
        _log.warning("left out %d empty file(s), first %s", len(empty), empty[0].path)
    return tuple(file for file in found if file not in empty)


def names_a_source(name: str) -> bool:
    """Whether a string that is no path may still be meant as a file, a pattern or a hub id."""
    known = _kind_of(Path(name)) is not None
    return known or bool(_PATTERN.search(name) or _HUB_ID.fullmatch(name))


def _expand(source: Source) -> list[SourceFile]:
    if isinstance(source, InMemory):
        return [_in_memory(source)]
    path = user_path(source)
    if not os.path.exists(path):  # also of a name that no file can have
        return _not_there(source, path)
    if path.is_dir():
        return [_saved_dataset(path)] if _is_saved_dataset(path) else _directory(path)
    if not path.is_file():
        raise DataError(
            f"{path} is a pipe or a device, which cannot be read twice; write its content to a "
            "file and give that."
        )
    kind = _kind_of(path)
    if kind is None:
        raise DataError(
            f"{path} has an unsupported type; supported are {_SUPPORTED}. Convert it, or "
            "rename it if only its name differs."
        )
    return [_file(path, kind)]


def _not_there(source: str | Path, path: Path) -> list[SourceFile]:
    if isinstance(source, str) and _PATTERN.search(source):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(
                f"no file matches the pattern {source!r} (relative ones start at {Path.cwd()}); "
                f"if it is text, put it into a list: [{source!r}]."
            )
        return [file for match in matches for file in _expand(Path(match))]
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and _kind_of(path) is None:
        return [SourceFile(kind="hub", path=source, size=0)]
    raise DataError(
        f"data file {shortened(str(path))} does not exist; check the path (relative paths start "
        f"at {Path.cwd()}). "
        "A dataset of the hub is owner/name."
    )


def shortened(text: str) -> str:
    """At most a line of a text, for a message."""
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def _in_memory(given: InMemory) -> SourceFile:
    if not given.texts:
        raise DataError("the list of texts is empty; give at least one document.")
    size = sum(map(len, given.texts))
    return SourceFile(kind="memory", path=f"memory:{given.digest()}", size=size, texts=given.texts)


def _kind_of(path: Path) -> Kind | None:
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _file(path: Path, kind: Kind) -> SourceFile:
    status = path.stat()
    _check_content(path, kind)
    return SourceFile(
        kind=kind, path=str(path.absolute()), size=status.st_size, mtime_ns=status.st_mtime_ns
    )


def _check_content(path: Path, kind: Kind) -> None:
    """Refuse a file whose first bytes are those of another kind than its name says."""
    try:
        with open_regular(path) as file:
            found = content_of(file.read(64))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; check that you may read it."
        ) from error
    meant = _CONTENT.get(kind)
    if meant is not None and found is None and path.stat().st_size:
        raise DataError(
            f"{path} is not {meant}, which its name says; rename it if it is plain text (to .jsonl "
            "or .txt), or copy it again."
        )
    if found is not None and found != meant:
        raise DataError(f"{path} is {found}, which its name does not say; {REMEDIES[found]}.")


def _directory(path: Path) -> list[SourceFile]:
    found: list[SourceFile] = []
    skipped: list[Path] = []
    for file in sorted(path.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if not file.is_file():
            continue
        kind = _kind_of(file)
        if kind is None:
            skipped.append(file)
        else:
            found.append(_file(file, kind))
    if not found:
        raise DataError(f"directory {path} holds no data file; supported are {_SUPPORTED}.")
    if skipped:
        _log.warning("%s: skipped %d other files, first %s", path, len(skipped), skipped[0])
    return found


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _splits(listing: Path) -> list[str]:
    try:
        splits: object = read_json(listing)["splits"]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{listing} does not list splits ({error}); save it again.") from error
    if not isinstance(splits, list) or not splits or not all(map(_is_name, splits)):
        raise DataError(f"{listing} lists {str(splits)[:60]}, not names of splits; save it again.")
    return splits


def _is_name(split: object) -> bool:
    return isinstance(split, str) and split == Path(split).name and "\0" not in split


def _saved_dataset(path: Path) -> SourceFile:
    """A directory written by `save_to_disk`; of several splits, "train" is used."""
    listing = path / "dataset_dict.json"
    if listing.is_file():
        splits = _splits(listing)
        if "train" not in splits and len(splits) != 1:
            raise DataError(
                f"{path} holds the splits {', '.join(splits)} and none is called train; "
                f"name one of them, such as {path / splits[0]}."
            )
        path = path / ("train" if "train" in splits else splits[0])
    arrows = [file.stat() for file in sorted(path.glob("*.arrow"))]
    if not arrows:
        raise DataError(f"saved dataset {path} has no .arrow file; save it again.")
    return SourceFile(
        kind="arrow",
        path=str(path.absolute()),
        size=sum(status.st_size for status in arrows),
        mtime_ns=max(status.st_mtime_ns for status in arrows),
    )


def plan_parts(files: Sequence[SourceFile], num_parts: int) -> list[tuple[Shard, ...]]:
    """Divide `files` into at most `num_parts` consecutive parts of about equal size.

    Args:
        files: The files to read, in order.
        num_parts: Number of workers, at least 1.

    Returns:
        Non-empty parts; reading them one after the other reads `files` in order.
    """
    shards = [shard for file in files for shard in _split(file, num_parts)]
    total = sum(shard.size for shard in shards)
    parts: list[list[Shard]] = [[] for _ in range(num_parts)]
    before = 0
    for shard in shards:
        middle = before + shard.size / 2
        parts[min(int(middle * num_parts / total), num_parts - 1) if total else 0].append(shard)
        before += shard.size
    return [tuple(part) for part in parts if part]


def _split(file: SourceFile, pieces: int) -> list[Shard]:
    ends: list[int]
    if pieces > 1 and file.kind == "jsonl":
        ends = _even(file.size, pieces)
    elif pieces > 1 and file.kind == "memory":
        ends = _even(len(file.texts), pieces)
    elif pieces > 1 and file.kind == "parquet":
        ends = _even(_num_row_groups(file.path), pieces)
    elif pieces > 1 and file.kind == "arrow":
        ends = _even(_num_rows(file.path), pieces)
    else:
        ends = [END]
    starts = [0, *ends[:-1]]
    return [
        Shard(
            kind=file.kind,
            path=file.path,
            size=file.size // len(ends),
            start=0 if file.texts else start,
            stop=END if file.texts else stop,
            # Only this piece is sent to the worker.
            texts=file.texts[start : None if stop == END else stop],
        )
        for start, stop in zip(starts, ends, strict=True)
    ]


def _even(count: int, pieces: int) -> list[int]:
    """Ends of `pieces` ranges that cover `range(count)`, without empty ones."""
    ends = [count * piece // pieces for piece in range(1, pieces + 1)]
    return sorted({end for end in ends if end}) or [END]


def _num_row_groups(path: str) -> int:
    return int(open_parquet(path).metadata.num_row_groups)


def _num_rows(path: str) -> int:
    return len(open_saved_dataset(path))

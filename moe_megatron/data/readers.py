"""Streams the documents of one shard, and accounts for every line.

A document is either yielded or counted: as `bad` (malformed; the first few are kept with file, line
and problem) or as `empty` (only white space). If reading cannot continue (a truncated archive, a
missing column), `DataError` is raised. The module knows nothing about tokenizers, and holds one
batch of documents in memory at a time.

One document is: a whole .txt file; the text key of one line of .jsonl, .jsonl.gz or .jsonl.zst;
the text column of one row of .parquet, of a dataset saved by `save_to_disk`, or of a hub dataset;
one string of a list.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from moe_megatron.data.columnar import open_parquet, open_saved_dataset, whole_columns
from moe_megatron.data.shards import END, Shard, Source, expand_sources, plan_parts
from moe_megatron.errors import DataError
from moe_megatron.network import hub_is_reachable
from moe_megatron.reading import lines, open_regular, read_bytes

MAX_EXAMPLES = 5
# If this many first lines are all malformed, the file has another format or key: stop at once.
HOPELESS_LINES = 1000
_BATCH_ROWS = 1000
_PACKED_BYTES = 1 << 12
_MOST_LINE_BYTES = 1 << 27
_MOST_TEXT_BYTES = 1 << 32
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLine:
    """A malformed line or row; `line` counts from 1."""

    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


class Problem(str):
    """Takes the place of a value that cannot be used, and says why, in a stream of values."""


class ShardReader:
    """Iterates over the texts of one shard, once.

    Attributes (final when the iteration has ended):
        lines: Number of all lines or rows.
        bad: Number of malformed ones.
        empty: Number of blank lines and texts of white space only, which are skipped.
        bad_lines: The first few malformed lines, numbered from the start of the shard.
        position: Approximate number of bytes of the shard read so far, for progress displays.
    """

    def __init__(self, shard: Shard, text_key: str = "text", *, all_may_be_bad: bool = False):
        """Prepare to read.

        Args:
            shard: The shard to read.
            text_key: JSON key or column that holds the text.
            all_may_be_bad: Do not stop when the first `HOPELESS_LINES` lines are all malformed.
        """
        self.shard = shard
        self.text_key = text_key
        self.lines = 0
        self.bad = 0
        self.empty = 0
        self.position = 0
        self.bad_lines: list[BadLine] = []
        self._all_may_be_bad = all_may_be_bad

    def __iter__(self) -> Iterator[Any]:
        """Yield each non-empty document.

        Raises:
            DataError: If reading cannot continue, or the first 1,000 lines are all malformed.
        """
        for value in self._values():
            self.lines += 1
            if isinstance(value, str) and not isinstance(value, Problem) and not value.strip():
                self.empty += 1
                continue
            taken = value if isinstance(value, Problem) else self._taken(value)
            if isinstance(taken, Problem):
                self._reject(taken)
            else:
                yield taken

    def _taken(self, value: Any) -> Any:
        """What is made of a value that was read, or the problem with it."""
        problem = _problem_of(value, self.text_key)
        return value if problem is None else Problem(problem)

    def _picked(self, record: dict[str, Any]) -> Any:
        """The value of a line of JSON."""
        if self.text_key in record:
            return record[self.text_key]
        keys = ", ".join(map(repr, list(record)[:5])) or "none"
        return Problem(f"no key {self.text_key!r} (keys: {keys})")

    def _columns(self, there: list[str]) -> list[str]:
        """The columns to read of those that there are."""
        _require_column(self.text_key, there, self.shard.path)
        return [self.text_key]

    def _of_rows(self, rows: list[dict[str, Any]]) -> list[Any]:
        """The values of rows with these columns."""
        return [row[self.text_key] for row in rows]

    def _advice(self) -> str:
        return (
            f"the format and text_key ({self.text_key!r}); if they are conversations, set "
            "data.format (--format of moe-megatron data) to instructions"
        )

    def _reject(self, problem: str) -> None:
        self.bad += 1
        if len(self.bad_lines) < MAX_EXAMPLES:
            self.bad_lines.append(BadLine(path=self.shard.path, line=self.lines, problem=problem))
        hopeless = self.shard.start == 0 and self.bad == self.lines == HOPELESS_LINES
        if hopeless and not self._all_may_be_bad:
            raise DataError(
                f"the first {HOPELESS_LINES} lines of {self.shard.path} are all malformed "
                f"(line 1: {self.bad_lines[0].problem}); check "
                f"{self._advice()}."
            )

    def _values(self) -> Iterator[Any]:
        shard = self.shard
        try:
            match shard.kind:
                case "txt":
                    yield self._whole_text()
                case "jsonl":
                    yield from map(self._parse, self._byte_range())
                case "jsonl.gz":
                    yield from map(self._parse, self._gzip_lines())
                case "jsonl.zst":
                    yield from map(self._parse, self._zstd_lines())
                case "parquet":
                    yield from self._parquet_rows()
                case "arrow":
                    yield from self._saved_rows()
                case "hub":
                    yield from map(self._picked, _hub_rows(shard.path, self._columns))
                case "memory":
                    yield from self._held_texts()
        except OSError as error:
            raise DataError(
                f"cannot read {shard.path}: {error.strerror or error}; check that the file exists "
                "and that you may read it."
            ) from error

    def _parse(self, line: bytes) -> Any:
        if not self.lines and not self.shard.start:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line or line.isspace():
            return ""
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return Problem(f"not UTF-8 (byte {error.start} of the line)")
        except (ValueError, RecursionError) as error:
            return Problem(f"not JSON ({error})")
        if not isinstance(record, dict):
            return Problem(f"a JSON {type(record).__name__}, not an object")
        return self._picked(record)

    def _held_texts(self) -> Iterator[str]:
        for text in self.shard.texts:
            self.position += len(text)  # as the size counts
            yield text

    def _whole_text(self) -> str:
        content = read_bytes(Path(self.shard.path), _MOST_TEXT_BYTES)
        self.position = len(content)
        try:
            return content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return Problem(f"not UTF-8 (byte {error.start}, line {line} of the file)")

    def _byte_range(self) -> Iterator[bytes]:
        """The lines that begin within the shard's range; the last one may end beyond it."""
        start, stop = self.shard.start, self.shard.stop
        with open_regular(Path(self.shard.path)) as file:
            if start:
                # One byte back: a line that begins exactly at `start` belongs to this shard.
                file.seek(start - 1)
                next(self._lines(file), None)
            here = file.tell()
            for line in self._lines(file):
                if stop != END and here >= stop:
                    break
                here += len(line)
                self.position = here - start
                yield line

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            yield from lines(file, _MOST_LINE_BYTES)
        except ValueError as error:
            raise _too_long(self.shard.path, str(error)) from None

    def _gzip_lines(self) -> Iterator[bytes]:
        try:
            with open_regular(Path(self.shard.path)) as file, gzip.open(file) as unpacked:
                for line in self._lines(cast(BinaryIO, unpacked)):
                    self.position = file.tell()
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _broken_archive(self.shard.path, str(error)) from error

    def _zstd_lines(self) -> Iterator[bytes]:
        try:
            yield from _split_lines(self._zstd_chunks())
        except ValueError as error:
            raise _too_long(self.shard.path, str(error)) from None

    def _zstd_chunks(self) -> Iterator[bytes]:
        import zstandard

        # zstandard's stream_reader takes a truncated frame for the end of the file; this does not.
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            with open_regular(Path(self.shard.path)) as file:
                # Few bytes at a time, because each can stand for 30,000.
                while chunk := file.read(_PACKED_BYTES):
                    self.position = file.tell()
                    while chunk:
                        if frame.eof:
                            frame = zstandard.ZstdDecompressor().decompressobj()
                        yield frame.decompress(chunk)
                        chunk = frame.unused_data if frame.eof else b""
        except zstandard.ZstdError as error:
            raise _broken_archive(self.shard.path, str(error)) from error
        if not frame.eof:
            raise _broken_archive(self.shard.path, "the last frame is cut off")

    def _parquet_rows(self) -> Iterator[Any]:
        file = open_parquet(self.shard.path)
        columns = self._columns(file.schema_arrow.names)
        row_groups = file.metadata.num_row_groups
        stop = row_groups if self.shard.stop == END else self.shard.stop
        wanted = list(range(self.shard.start, stop))
        rows = sum(file.metadata.row_group(number).num_rows for number in wanted)
        batches = file.iter_batches(_BATCH_ROWS, row_groups=wanted, columns=columns)
        with whole_columns(self.shard.path):
            for batch in batches:
                self.position = self.shard.size * (self.lines + len(batch)) // max(rows, 1)
                yield from self._of_rows(batch.to_pylist())

    def _saved_rows(self) -> Iterator[Any]:
        dataset = open_saved_dataset(self.shard.path)
        columns = self._columns(dataset.column_names)
        stop = len(dataset) if self.shard.stop == END else self.shard.stop
        rows = dataset.select_columns(columns).select(range(self.shard.start, stop))
        for batch in rows.iter(_BATCH_ROWS):
            values = [batch[name] for name in columns]
            records = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
            self.position = self.shard.size * (self.lines + len(records)) // max(len(rows), 1)
            yield from self._of_rows(records)


def read_texts(sources: Sequence[Source], text_key: str = "text") -> Iterator[str]:
    """Every well-formed document of `sources`, in order; for training a tokenizer.

    Raises:
        DataError: If a source is missing, empty or broken.
    """
    for part in plan_parts(expand_sources(sources), 1):
        for shard in part:
            yield from ShardReader(shard, text_key)


def _hub_rows(spec: str, check: Callable[[list[str]], list[str]]) -> Iterator[dict[str, Any]]:
    """Stream a hub dataset; with HF_HUB_OFFLINE=1, read the copy in the local HF cache."""
    import datasets

    name, *rest = spec.split(":")
    config = rest[0] if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    streaming = os.environ.get("HF_HUB_OFFLINE", "").lower() not in {"1", "true", "yes", "on"}
    if streaming and not hub_is_reachable():
        raise _not_from_hub(spec, "it cannot be reached")
    try:
        rows = iter(datasets.load_dataset(name, config, split=split, streaming=streaming))
        first = next(rows, None)
        if first is not None:
            check(list(first))
            yield first
        yield from rows
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise _not_from_hub(spec, f"{type(error).__name__}: {first_line}") from error


def _not_from_hub(spec: str, reason: str) -> DataError:
    return DataError(
        f"{spec} is not a local file, and could not be read from the Hugging Face hub ({reason}). "
        "Check the name (owner/name:config:split) and the network; or download it on a machine "
        'with a network (datasets.load_dataset(...).save_to_disk("DIR")) and give DIR; or use '
        '"demo".'
    )


def _require_column(name: str, columns: list[str], where: str) -> None:
    if name not in columns:
        raise DataError(
            f"{where} has no column {name!r}; its columns are {', '.join(columns)}: set text_key "
            "to one of them."
        )


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > _MOST_LINE_BYTES:
            raise ValueError(f"a line has more than {_MOST_LINE_BYTES:,} bytes")
    if rest:
        yield rest


def _problem_of(value: object, text_key: str) -> str | None:
    """Why `value` is not a text; None if it is one."""
    if not isinstance(value, str):
        return f"{text_key!r} is {type(value).__name__}, not a string"
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return f"{text_key!r} holds half a surrogate pair, which is not Unicode text"
    return None


def _too_long(path: str, reason: str) -> DataError:
    return DataError(f"{path}: {reason}; split it, or leave the file out.")


def _broken_archive(path: str, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged or truncated ({reason}); copy or download it again. "
        "Nothing was prepared from it."
    )

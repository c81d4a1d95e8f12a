"""Data files that are not what their names say: one paragraph each, at once."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.data.readers import read_texts
from moe_megatron.data.shards import expand_sources
from moe_megatron.errors import DataError

LINE = json.dumps({"text": "a"}).encode() + b"\n"


def named(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.jsonl")
    return folder / "x.jsonl"


def _empty_files(folder: Path) -> Path:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).touch()
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text named .gz": (named("x.jsonl.gz", LINE), "is not gzip data, which its name says; rename"),
    "text named .zst": (named("x.jsonl.zst", LINE), "is not zstd data, which its name says; rena"),
    "text named .parquet": (named("x.parquet", LINE), "is not a parquet file, which its name says"),
    "gzip named .jsonl": (
        named("x.jsonl", gzip.compress(LINE)),
        "is gzip data, which its name does not say; rename it to .jsonl.gz",
    ),
    "gzip named .txt": (named("x.txt", gzip.compress(LINE)), "is gzip data, which its name does"),
    "UTF-16": (
        named("x.jsonl", LINE.decode().encode("utf-16")),
        "is text in UTF-16, which its name does not say; save it as UTF-8",
    ),
    "UTF-16 named .txt": (
        named("x.txt", "a".encode("utf-16")),
        "is text in UTF-16, which its name",
    ),
    "zip named .jsonl": (named("x.jsonl", b"PK\x03\x04 and so on"), "is a zip archive, .* unpack"),
    "PDF named .txt": (named("x.txt", b"%PDF-1.7"), "is a PDF document, .* extract its text first"),
    "pointer of Git LFS": (
        named("x.parquet", b"version https://git-lfs.github.com/spec/v1\n"),
        "is a pointer of Git LFS, which its name does not say; fetch the file that it stands for",
    ),
    "pipe": (_pipe, "is a pipe or a device, which cannot be read twice; write its content to a"),
    "device": (lambda folder: Path("/dev/zero"), "is a pipe or a device, which cannot be read"),
    "empty": (named("x.jsonl", b""), "data file .*x.jsonl is empty; write it again, or leave it"),
    "all empty": (_empty_files, "data file .*a.jsonl and 1 more is empty; write it again"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", WRONG)
def test_file_is_refused_in_a_paragraph(kind: str, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        list(read_texts([path]))
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said


def test_empty_files_among_good_ones_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in {"a.jsonl": LINE, "b.jsonl": b"", "c.txt": b"", "d.txt": b"d"}.items():
        (tmp_path / name).write_bytes(content)
    assert [Path(file.path).name for file in expand_sources([tmp_path])] == ["a.jsonl", "d.txt"]
    assert "left out 2 empty file(s), first " in caplog.text
    paths = [tmp_path / name for name in ("b.jsonl", "a.jsonl")]
    assert list(read_texts(paths)) == ["a"]


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfb")
    assert list(read_texts([tmp_path])) == ["a", "b"]

"""What a file is, by its first bytes: where its name says something else, it is refused by name."""

GZIP = "gzip data"
ZSTD = "zstd data"
PARQUET = "a parquet file"
LFS_POINTER = "a pointer of Git LFS"

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"PAR1", PARQUET),
    (b"version https://git-lfs", LFS_POINTER),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"%PDF-", "a PDF document"),
)
_UNPACK = "unpack it, and give what was in it"
REMEDIES = {
    GZIP: "rename it to .jsonl.gz if it is packed JSON lines, or unpack it",
    ZSTD: "rename it to .jsonl.zst if it is packed JSON lines, or unpack it",
    PARQUET: "rename it to .parquet",
    LFS_POINTER: "fetch the file that it stands for, with git lfs pull",
    "text in UTF-16": "save it as UTF-8 (iconv -f utf-16 -t utf-8)",
    "a zip archive": _UNPACK,
    "bzip2 data": _UNPACK,
    "xz data": _UNPACK,
    "a PDF document": "extract its text first",
}
"""What to do about each kind of content where another was expected."""


def content_of(beginning: bytes) -> str | None:
    """What a file is, as a phrase; None for plain text and whatever is not known.

    Args:
        beginning: Its first bytes, 32 or more.
    """
    return next((what for magic, what in _BEGINNINGS if beginning.startswith(magic)), None)

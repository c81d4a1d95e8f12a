"""Finds the data of a tensor inside a torch.save archive that is itself a part of a file.

A Megatron checkpoint file is a sequence of such archives. They are ZIP files without compression,
so a tensor is a range of bytes, which the archive's directory locates.
"""

import io
import os
import struct
import zipfile
from collections.abc import Buffer
from dataclasses import dataclass

from moe_megatron.errors import CheckpointError

_HEAD = 4096
"""Bytes to read at the beginning of a record, for the pickle and the header of the data."""
_TAIL = 4096
"""Bytes to read at its end, for the directory."""
_END = b"PK\x05\x06"
_DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Record:
    """An archive of one object."""

    pickle: bytes
    """The description of the object."""
    data: tuple[tuple[int, int], ...]
    """Offset in the file and bytes of each storage of the object."""


class _Range(io.RawIOBase):
    """A part of a file that behaves like a file."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._start, self._length = descriptor, offset, length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        room = memoryview(buffer)[: max(0, self._length - self._at)]
        count = os.preadv(self._descriptor, [room], self._start + self._at) if len(room) else 0
        self._at += count
        return count


def read_record(descriptor: int, offset: int, length: int, what: str) -> Record:
    """Read the directory of an archive.

    Args:
        descriptor: Descriptor of the open file.
        offset: Offset of the archive in the file.
        length: Length of the archive.
        what: Tensor and file, for error messages.

    Raises:
        CheckpointError: The archive is damaged, or compressed.
    """
    try:
        members = _members(descriptor, offset, length)
        return _record(descriptor, offset, length, members)
    except (zipfile.BadZipFile, struct.error, LookupError, ValueError, NotImplementedError):
        raise CheckpointError(
            f"{what}: the record at byte {offset} is damaged: it is not a torch.save archive."
        ) from None


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    header: int
    size: int


def _members(descriptor: int, offset: int, length: int) -> list[_Member]:
    """Entries of the directory; simple ones are parsed here, as zipfile is ten times slower."""
    tail = os.pread(descriptor, min(_TAIL, length), offset + max(0, length - _TAIL))
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("no end of directory")
    count, size, start = struct.unpack_from("<HLL", tail, end + 10)
    at = start - (length - len(tail))  # there is a ZIP64 record in between
    if start == 0xFFFFFFFF or count == 0xFFFF or at < 0 or start + size > length:
        return _members_by_zipfile(descriptor, offset, length)
    members = []
    for _ in range(count):
        entry = _DIRECTORY_ENTRY.unpack_from(tail, at)
        method, nbytes, header = entry[4], entry[9], entry[16]
        if entry[0] != b"PK\x01\x02" or method != 0:
            raise ValueError("not a plain entry")
        if 0xFFFFFFFF in (nbytes, header):
            return _members_by_zipfile(descriptor, offset, length)
        name_at = at + _DIRECTORY_ENTRY.size
        name = tail[name_at : name_at + entry[10]].decode()
        members.append(_Member(name, header, nbytes))
        at = name_at + entry[10] + entry[11] + entry[12]
    return members


def _members_by_zipfile(descriptor: int, offset: int, length: int) -> list[_Member]:
    with zipfile.ZipFile(io.BufferedReader(_Range(descriptor, offset, length))) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")
        return [_Member(e.filename, e.header_offset, e.file_size) for e in archive.infolist()]


def _record(descriptor: int, offset: int, length: int, members: list[_Member]) -> Record:
    head = os.pread(descriptor, min(_HEAD, length), offset)
    pickled, data = None, {}
    for member in members:
        _, _, name = member.name.partition("/")
        if name != "data.pkl" and not name.startswith("data/"):
            continue
        begin = offset + member.header + _local_header(descriptor, offset, head, member.header)
        if begin + member.size > offset + length:
            raise ValueError("leaves the record")
        if name == "data.pkl":
            pickled = os.pread(descriptor, member.size, begin)
        else:
            data[int(name[5:])] = (begin, member.size)
    if pickled is None:
        raise LookupError("data.pkl")
    return Record(pickled, tuple(data[number] for number in sorted(data)))


def _local_header(descriptor: int, offset: int, head: bytes, at: int) -> int:
    """Bytes between the beginning of a member and its data."""
    if at + _LOCAL_HEADER.size <= len(head):
        fields = _LOCAL_HEADER.unpack_from(head, at)
    else:
        fields = _LOCAL_HEADER.unpack(os.pread(descriptor, _LOCAL_HEADER.size, offset + at))
    if fields[0] != b"PK\x03\x04":
        raise ValueError("no member")
    return _LOCAL_HEADER.size + int(fields[9]) + int(fields[10])


def is_intact(descriptor: int, offset: int, length: int) -> bool:
    """Whether the checksums that an archive has of its own match its content."""
    try:
        with zipfile.ZipFile(io.BufferedReader(_Range(descriptor, offset, length))) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError):
        return False

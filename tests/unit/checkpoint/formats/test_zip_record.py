"""Archives within a file, also those whose directory the short way cannot read."""

import os
from pathlib import Path

import pytest
import torch

from moe_megatron.checkpoint.formats import zip_record


@pytest.fixture
def place(tmp_path: Path) -> tuple[int, int, int]:
    """Descriptor, offset and length of an archive between other bytes."""
    path = tmp_path / "file"
    torch.save(torch.arange(3000.0), tmp_path / "archive")
    archive = (tmp_path / "archive").read_bytes()
    path.write_bytes(b"before" + archive + b"after")
    return os.open(path, os.O_RDWR), len(b"before"), len(archive)


def test_both_ways_to_read_a_directory_agree(place: tuple[int, int, int]) -> None:
    by_zipfile = zip_record._members_by_zipfile(*place)
    assert by_zipfile == zip_record._members(*place)
    assert "archive/data/0" in {member.name for member in by_zipfile}


def test_checksums_of_an_archive_notice_a_flipped_bit(place: tuple[int, int, int]) -> None:
    descriptor, offset, length = place
    assert zip_record.is_intact(*place)
    ((begin, _),) = zip_record.read_record(descriptor, offset, length, "it").data
    os.pwrite(descriptor, b"\x01", begin)
    assert not zip_record.is_intact(*place)
    assert not zip_record.is_intact(descriptor, offset, length // 2)

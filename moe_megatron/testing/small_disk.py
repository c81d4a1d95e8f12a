"""A disk of a given size that a test can fill and empty: a tmpfs, which only root may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FILLER = "filler"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk on a folder, or skip the test.

    Args:
        folder: Where; it is created.
        size: As tmpfs takes it, such as "1m".
    """
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting needs root; run the tests as root in a container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (disk / _FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def empty(disk: Path) -> None:
    """Free what `fill` took."""
    (disk / _FILLER).unlink()

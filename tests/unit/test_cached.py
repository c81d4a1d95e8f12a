"""A cached folder is built once, and again only if it is damaged."""

import shutil

import pytest

from moe_megatron.cached import cached_folder, sampled_digest
from moe_megatron.errors import DataError

FILES = {"small": b"words", "large": bytes(range(256)) * 30_000}


class Builder:
    def __init__(self):
        self.times = 0

    def __call__(self, folder):
        self.times += 1
        for name, content in FILES.items():
            (folder / name).write_bytes(content)


@pytest.fixture
def build():
    return Builder()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def test_folder_is_built_once(tmp_path, build):
    for _ in range(3):
        assert contents(cached_folder(tmp_path / "cache" / "entry", build)) == FILES
    assert build.times == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def zero_the_second_half(path):
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(path.stat().st_size - half))


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [*FILES, "contents.json"])
@pytest.mark.parametrize(
    "damage",
    [truncate, zero, zero_the_second_half, replace_by_a_folder, lambda path: path.unlink()],
    ids=["truncated", "zeroed", "half zeroed", "a folder", "gone"],
)
def test_damaged_folder_is_built_again(tmp_path, build, name, damage):
    entry = cached_folder(tmp_path / "entry", build)
    damage(entry / name)
    assert contents(cached_folder(entry, build)) == FILES
    assert build.times == 2


@pytest.mark.parametrize("what", ["file", "foreign file inside", "empty folder"])
def test_what_is_not_the_entry_is_replaced(tmp_path, build, what):
    entry = tmp_path / "entry"
    if what == "file":
        entry.write_text("x")
    else:
        cached_folder(entry, build)
        shutil.rmtree(entry) if what == "empty folder" else (entry / "more").write_text("x")
        entry.mkdir(exist_ok=True)
    assert contents(cached_folder(entry, build)) == FILES


def test_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise DataError("no; do this.")

    with pytest.raises(DataError, match="no; do this"):
        cached_folder(tmp_path / "entry", fail)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_names_the_remedy(tmp_path, build):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: .*; choose another directory"):
        cached_folder(tmp_path / "file" / "entry", build)


def test_digest_notices_size_beginning_end_and_blocks(tmp_path):
    path = tmp_path / "file"
    whole = bytes(64 * 2**17)  # larger than what is read of it
    seen = set()
    for start in (None, 0, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        if start is not None:
            content[start : start + 2**17] = b"x" * len(content[start : start + 2**17])
        path.write_bytes(content)
        seen.add(sampled_digest(path))
    path.write_bytes(whole[:-1])
    assert len({*seen, sampled_digest(path)}) == 5

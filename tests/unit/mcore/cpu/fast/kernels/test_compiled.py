"""C that is compiled on the machine: once, and never in the way."""

import ctypes
import logging
import os
from pathlib import Path

import pytest

from moe_megatron.mcore.cpu.fast.kernels import compiled
from moe_megatron.mcore.cpu.fast.kernels.compiled import library
from moe_megatron.platform.compiler import c_compiler

ANSWER = "int answer(void) { return %d; }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    compiled._warn_once.cache_clear()
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(ANSWER % 42)
    return path


@pytest.fixture
def compiler() -> None:
    if not c_compiler():
        pytest.skip("no C compiler on this machine")


def answer(source: Path) -> int:
    loaded = library(source)()
    assert loaded is not None
    return int(loaded.answer())


@pytest.mark.usefixtures("compiler")
def test_a_second_load_compiles_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(source) == 42
    monkeypatch.setattr(compiled, "_run", lambda command: pytest.fail(f"ran {command}"))
    assert answer(source) == 42
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("other", ["source", "processor", "user"])
def test_another_source_processor_or_user_gets_another_library(
    source: Path, cache: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(source)
    if other == "source":
        source.write_text(ANSWER % 43)
    if other == "processor":
        monkeypatch.setattr(compiled, "_processor", lambda: "of tomorrow")
    if other == "user":
        monkeypatch.setattr(compiled, "_processor", lambda: f"the user {os.geteuid() + 1}")
    assert answer(source) == (43 if other == "source" else 42)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("damage", ["empty", "cut", "cut within", "other byte", "longer", "text"])
def test_a_damaged_library_is_compiled_anew(source: Path, cache: Path, damage: str) -> None:
    assert answer(source) == 42
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-1],
            "cut within": whole[:middle],
            "other byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "longer": whole + b"x",
            "text": b"not a library",
        }[damage]
    )
    assert answer(source) == 42
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert compiled._is_whole(os.open(file, os.O_RDONLY))


@pytest.mark.usefixtures("compiler")
def test_a_disk_that_damages_what_is_written_is_told(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "_is_whole", lambda file: False)
    assert library(source)() is None
    assert "is damaged as soon as it is written; check the disk" in caplog.text


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("danger", ["mode", "link", "pipe", "owner of the folder"])
def test_a_library_that_others_can_change_is_not_loaded(
    danger: str,
    source: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer(source)
    compiled_file = next(cache.iterdir())
    if danger == "mode":
        compiled_file.chmod(0o775)
    if danger in ("link", "pipe"):
        compiled_file.rename(cache.parent / "elsewhere.so")
    if danger == "link":
        compiled_file.symlink_to(cache.parent / "elsewhere.so")
    if danger == "pipe":
        os.mkfifo(compiled_file)
    if danger == "owner of the folder":
        someone = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: someone)
    assert library(source)() is None
    assert "is not this user's alone" in caplog.text or "symbolic link" in caplog.text


@pytest.mark.usefixtures("compiler")
def test_a_folder_that_is_a_link_is_not_used(
    source: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "of somebody").mkdir()
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "of somebody")
    assert library(source)() is None
    assert "is not a folder of this user" in caplog.text
    assert list((tmp_path / "of somebody").iterdir()) == []


@pytest.mark.usefixtures("compiler")
def test_the_folder_is_closed_to_others(source: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert answer(source) == 42
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("compiler")
def test_the_file_that_was_checked_is_loaded_although_another_takes_its_name(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    assert answer(source) == 42
    named = compiled._built(source)
    source_of_other = tmp_path / "other.c"
    source_of_other.write_text(ANSWER % 66)
    assert answer(source_of_other) == 66
    other = next(path for path in cache.iterdir() if path.stem.startswith("other"))
    mine = next(path for path in cache.iterdir() if path.stem.startswith("answer"))
    other.replace(mine)
    assert ctypes.CDLL(named).answer() == 42


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("no compiler", "found none of cc, gcc, clang"),
        ("compiler fails", "false: exit code 1"),
        ("compiler is not there", "/nowhere/cc: No such file"),
        ("compiler hangs", "took more than"),
        ("cache is a file", "cannot write"),
    ],
)
def test_what_cannot_be_compiled_is_told_and_left(
    obstacle: str,
    reason: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", {"compiler is not there": "/nowhere/cc"}.get(obstacle, "false"))
    if obstacle == "no compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", str(tmp_path))
    if obstacle == "compiler hangs":
        monkeypatch.setenv("CC", "sh -c 'exec sleep 60'")
        monkeypatch.setattr(compiled, "_SECONDS", 0.2)
    if obstacle == "cache is a file":
        (tmp_path / "cache").write_text("")
    with caplog.at_level(logging.WARNING):
        assert library(source)() is None
    assert reason in caplog.text
    assert "torch computes the same" in caplog.text


@pytest.mark.usefixtures("compiler")
def test_an_error_of_the_compiler_is_shown(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.write_text("int answer(void) { return }\n")
    assert library(source)() is None
    assert "answer.c:1:27: error: " in caplog.text


def test_one_reason_is_told_once(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "false")
    assert library(source)() is None
    assert library(source)() is None
    assert caplog.text.count("C kernels cannot be compiled (false: exit code 1)") == 1


@pytest.mark.usefixtures("compiler")
def test_a_header_that_changes_is_compiled_anew(source: Path) -> None:
    source.write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    header = source.with_name("answer.h")
    header.write_text("#define ANSWER 1\n")
    assert answer(source) == 1
    header.write_text("#define ANSWER 2\n")
    assert answer(source) == 2

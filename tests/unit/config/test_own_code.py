"""Loading what a user named, and nothing else."""

import hashlib
import sys
from pathlib import Path

import pytest

from moe_megatron.config.own_code import check_unchanged, load_code, names_code, not_given
from moe_megatron.errors import ConfigError

SOURCE = '''\
"""Mine."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Wide:
    width: int = 4


def sharp(x):
    return 1 / x
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_name_of_a_file_is_loaded_with_its_hash_and_its_line(file: Path) -> None:
    code = load_code(f"{file}:sharp")
    assert code.found(2) == 0.5
    assert (code.file, code.name, code.line, code.label) == (file, "sharp", 12, "mine.py:sharp")
    assert code.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_code(code.spec) == code
    assert load_code(f"{file}:Wide", "expert").found().width == 4


def test_paths_are_those_of_a_person(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_code("mine.py:sharp") == load_code("~/mine.py:sharp") == load_code(f"{file}:sharp")


def test_a_file_is_executed_once_and_again_when_it_changes(file: Path) -> None:
    file.write_text("marks = []\n")
    first = load_code(f"{file}:marks")
    assert load_code(f"{file}:marks").found is first.found
    file.write_text("marks = [1]\n")
    second = load_code(f"{file}:marks")
    assert (second.found, first.found) == ([1], [])
    assert second.sha256 != first.sha256


def test_nothing_is_written_and_no_folder_is_searched(file: Path) -> None:
    before = list(sys.path)
    load_code(f"{file}:sharp")
    assert [path.name for path in file.parent.iterdir()] == ["mine.py"]
    assert sys.path == before


def test_what_it_raises_later_is_told_with_its_line(file: Path) -> None:
    code = load_code(f"{file}:sharp")
    with pytest.raises(ZeroDivisionError) as raised:
        code.found(0)
    assert code.told(raised.value) == "ZeroDivisionError: division by zero (line 13)"
    assert code.place == f"sharp ({file}, line 12)"


BROKEN = {
    "no Python": ("x = (\n", r"broken.py, line 1, is not Python: '\(' was never closed"),
    "null byte": ("x = 1\0\n", "broken.py is not Python: source code string cannot contain null"),
    "raises": ("a = 1\nb = a / 0\n", "broken.py, line 2, raises when it is loaded: ZeroDivisionEr"),
    "ends the process": (
        "import sys\nsys.exit(3)\n",
        "line 2, raises when it is loaded: SystemExi",
    ),
    "neighbour": ("import neighbour_of_mine\n", "loaded alone, without the folder it is in"),
    "misspelt": ("def sharp(x): ...\n", r"has no 'shrap'. Did you mean 'sharp'\? It defines sharp"),
    "empty": ("", "has no 'shrap'. It defines nothing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_in_one_paragraph(case: str, tmp_path: Path) -> None:
    text, said = BROKEN[case]
    path = tmp_path / "broken.py"
    path.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(ConfigError, match=said) as raised:
        load_code(f"{path}:shrap")
    assert "\n" not in str(raised.value)
    if "has no" not in said:
        assert set(sys.modules) == modules


MISTAKEN = {
    "missing.py:fn": r"missing.py cannot be read \(No such file or directory\)",
    "mine.py": "neither the name of one nor a file with one; name the Python file and, after a col",
    "mine.py:": "as in my_router.py:my_router",
    "mine:sharp": "neither the name",
    "mine.py:a b": "neither the name",
    "https://a.b/mine.py:sharp": "is an address, and code is never downloaded",
}


@pytest.mark.parametrize("spec", MISTAKEN)
def test_a_mistaken_name_is_told_in_one_paragraph(
    spec: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert names_code(spec)
    with pytest.raises(ConfigError, match=MISTAKEN[spec]):
        load_code(spec)


def test_a_folder_and_a_large_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(2**21)
    for name, said in {"folder": "Is a directory", "large": "more than 1,048,576 bytes"}.items():
        with pytest.raises(ConfigError, match=said):
            load_code(f"{tmp_path / name}.py:fn")


def test_names_of_what_is_registered_are_no_code() -> None:
    assert not any(map(names_code, ("top_k", "sharp", 4, None)))


def test_changed_code_is_refused_unless_it_is_said_to_replace_the_other(file: Path) -> None:
    code = load_code(f"{file}:sharp")
    check_unchanged(code, None, None, "moe.router")
    check_unchanged(code, code.sha256, None, "moe.router")
    other = "ab" * 32
    said = f"mine.py has changed: .* on purpose, say .*: --set moe.router.replaces={other}"
    with pytest.raises(ConfigError, match=said):
        check_unchanged(code, other, None, "moe.router")
    check_unchanged(code, other, other, "moe.router")


def test_code_that_nobody_gave_is_asked_for() -> None:
    error = not_given("mine.py:sharp", "ab" * 32, "--router PATH/mine.py:sharp")
    assert "never loaded because one names it. Give the file: --router PATH" in str(error)
    assert "sha256 abababababab..." in str(error)
